//! A full disk.

use std::path::Path;
use std::process::Command;

use simloop_policies::{ImitationModel as _, safetensors_io};
use simloop_trainers::checkpoint::{Origin, verify};
use simloop_trainers::observer::Observers;
use simloop_trainers::offline::LoopOptions;
use simloop_trainers::run::{Existing, RunFolder};
use simloop_trainers::stop::StopFlag;

use super::toy::{Toy, ToyData, ToyWorld, options, train};

#[test]
fn a_write_that_finds_the_disk_full_keeps_the_checkpoint_before_it() {
    let root = tempfile::tempdir().unwrap();
    let run = RunFolder::open(root.path(), Existing::Refuse, Origin::default()).unwrap();
    let toy = Toy::new(0);
    let weights = toy.params().snapshot();
    run.save(1, 5, |dir| Ok(safetensors_io::save(&dir.join("model.safetensors"), &weights)?))
        .unwrap();
    let error = run
        .save(2, 5, |dir| {
            // Linux answers every write to /dev/full with ENOSPC.
            let file = dir.join("model.safetensors");
            std::os::unix::fs::symlink("/dev/full", &file).unwrap();
            Ok(safetensors_io::save(&file, &weights)?)
        })
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("No space left") && text.contains("00000002"), "{text}");
    assert!(text.contains("bytes were written") && text.contains("untouched"), "{text}");
    assert_eq!(error.exit_code(), 1);
    assert_eq!(run.newest().unwrap().unwrap().0, 1);
    verify(&root.path().join("last")).unwrap();
}

/// A file system of its own, small; `None` where this process may not mount one.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path, kib: u32) -> Option<Self> {
        let size = format!("size={kib}k");
        let out =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        out.is_ok_and(|o| o.status.success()).then_some(Self(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_run_on_a_full_disk_says_so_and_can_go_on_when_there_is_room() {
    let root = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(root.path(), 512) else {
        eprintln!("skipped: mounting a small file system is not allowed here");
        return;
    };
    // A checkpoint of the toy takes about 100 kB: the sixth or so does not fit.
    let options = LoopOptions { save_every: 1, keep_last: 100, ..options(40) };
    let data = || ToyData { poison: usize::MAX };
    let (mut world, stop) = (ToyWorld::default(), StopFlag::default());
    let run = root.path().join("run");
    let (end, bc, _) = train(&run, &options, data(), &mut world, &mut Observers::default(), &stop);
    let error = end.unwrap_err();
    let text = error.to_string();
    let reached = bc.updates();
    assert!(text.contains("No space left") && text.contains(&format!("{reached:08}")), "{text}");
    assert!(text.contains("bytes were written"), "{text}");
    assert_eq!(error.exit_code(), 1);
    drop(bc);
    {
        let folder = RunFolder::open(&run, Existing::Resume, Origin::default()).unwrap();
        assert_eq!(folder.newest().unwrap().unwrap().0, reached - 1);
    }
    verify(&run.join("last")).unwrap();
    // Room is made: older checkpoints go, the run goes on to its end.
    let options = LoopOptions { keep_last: 1, save_every: 20, ..options };
    std::fs::remove_dir_all(run.join("checkpoints/00000001")).unwrap();
    std::fs::remove_dir_all(run.join("checkpoints/00000002")).unwrap();
    let (end, bc, _) = train(&run, &options, data(), &mut world, &mut Observers::default(), &stop);
    end.unwrap();
    assert_eq!(bc.updates(), 40);
    drop(disk);
}
