//! Tests of checkpoints.

use super::*;

fn fill(bytes: &'static [u8]) -> impl Fn(&Path) -> Result<(), TrainerError> {
    move |dir: &Path| {
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("a"), bytes).unwrap();
        fs::write(dir.join("sub/b"), b"second").unwrap();
        Ok(())
    }
}

#[test]
fn a_published_folder_is_listed_and_verifies() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("10");
    let manifest = publish(&target, &Origin::default(), fill(b"one")).unwrap();
    assert_eq!(manifest.files.keys().collect::<Vec<_>>(), ["a", "sub/b"]);
    assert_eq!(manifest.files["a"].bytes, 3);
    // printf one | sha256sum
    assert_eq!(
        manifest.files["a"].sha256,
        "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    );
    assert_eq!(verify(&target).unwrap(), manifest);
    assert_eq!(entry_names(root.path()).unwrap(), ["10"]);
}

#[test]
fn replacing_leaves_the_new_folder_alone() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("best");
    publish(&target, &Origin::default(), fill(b"one")).unwrap();
    fs::write(target.join("stray"), b"x").unwrap();
    publish(&target, &Origin::default(), fill(b"two")).unwrap();
    assert_eq!(fs::read(target.join("a")).unwrap(), b"two");
    assert!(!target.join("stray").exists());
    assert_eq!(entry_names(root.path()).unwrap(), ["best"]);
}

#[test]
fn every_flipped_bit_and_missing_file_is_found() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("10");
    publish(&target, &Origin::default(), fill(b"one")).unwrap();
    for bit in 0..24 {
        let mut bytes = *b"one";
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(target.join("a"), bytes).unwrap();
        let error = verify(&target).unwrap_err().to_string();
        assert!(error.contains("SHA-256") && error.contains("10/a"), "{error}");
    }
    fs::write(target.join("a"), b"on").unwrap();
    assert!(verify(&target).unwrap_err().to_string().contains("2 bytes"));
    fs::remove_file(target.join("a")).unwrap();
    assert!(verify(&target).is_err());
    fs::remove_file(target.join(MANIFEST_FILE)).unwrap();
    assert!(verify(&target).is_err());
}

#[test]
fn a_failed_write_keeps_what_was_there_and_says_so() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("best");
    publish(&target, &Origin::default(), fill(b"one")).unwrap();
    let error = publish(&target, &Origin::default(), |dir| {
        fs::write(dir.join("a"), vec![0; 1000]).unwrap();
        let full = io::Error::from_raw_os_error(28); // ENOSPC
        Err(TrainerError::io("write", &dir.join("model.safetensors"))(full))
    })
    .unwrap_err()
    .to_string();
    for part in ["best", "1000 bytes", "No space left", "model.safetensors", "untouched"] {
        assert!(error.contains(part), "{error}");
    }
    verify(&target).unwrap();
    assert_eq!(entry_names(root.path()).unwrap(), ["best"]);
}

#[test]
fn leftovers_are_swept_and_a_folder_between_two_renames_comes_back() {
    let root = tempfile::tempdir().unwrap();
    for name in ["5", "6.tmp-1", "best.old-1", "final", "final.old-2"] {
        fs::create_dir(root.path().join(name)).unwrap();
    }
    std::os::unix::fs::symlink("nowhere", root.path().join("last.tmp-9")).unwrap();
    let swept = sweep(root.path()).unwrap();
    assert_eq!(swept, ["6.tmp-1", "best.old-1", "final.old-2", "last.tmp-9"]);
    assert_eq!(entry_names(root.path()).unwrap(), ["5", "best", "final"]);
}

#[test]
fn a_link_moves_in_one_step() {
    let root = tempfile::tempdir().unwrap();
    let link = root.path().join("last");
    for step in ["1", "2"] {
        fs::create_dir(root.path().join(step)).unwrap();
        point(&link, Path::new(step)).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(step));
    }
}
