//! Tests of the manifest.

use super::*;
use crate::data::toys::Counting;
use std::fs;

fn built(source: &dyn DemoSource, folder: &Path) -> Result<ManifestSource, DataError> {
    build_manifest(source, folder, |_| false)?;
    ManifestSource::open(folder)
}

#[test]
fn a_manifest_gives_back_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let source = Counting::new(&[4, 2, 3]);
    let manifest = built(&source, folder.path()).unwrap();
    assert_eq!(manifest.episodes(), source.episodes());
    for e in 0..3 {
        let (a, b) = (source.read(e, true).unwrap(), manifest.read(e, true).unwrap());
        assert_eq!((&a.proprio, &a.actions), (&b.proprio, &b.actions));
        for t in 0..a.len() {
            assert_eq!(a.images["eye"].get(t).unwrap(), b.images["eye"].get(t).unwrap());
        }
    }
    assert_eq!(manifest.statistics().0.max, [3.0, 30.0]);
    assert_eq!(manifest.statistics().1.count, 9);
    // Again: nothing to do, nothing changed.
    let before = fs::read(folder.path().join(FILE)).unwrap();
    let again = build_manifest(&source, folder.path(), |_| false).unwrap();
    assert_eq!(again, ManifestProgress { found: 3, written: 0, total: 3 });
    assert_eq!(fs::read(folder.path().join(FILE)).unwrap(), before);
}

#[test]
fn floats_come_back_bit_for_bit() {
    let values = [0.1f32, 1.0 / 3.0, f32::MIN_POSITIVE, 1e-40, 16_777_217.0, -2.5e30, 0.0];
    let line = Line {
        episode: 0,
        id: "x".to_owned(),
        instruction: Arc::from("go"),
        proprio: vec![values.to_vec()],
        actions: vec![],
        images: BTreeMap::new(),
    };
    let back: Line = serde_json::from_str(&serde_json::to_string(&line).unwrap()).unwrap();
    let bits = |l: &Line| l.proprio[0].iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&back), bits(&line));
}

/// A kill leaves a prefix of what would have been written: every line is one write, images come first.
#[test]
fn a_builder_killed_at_any_byte_goes_on_without_a_line_twice() {
    let whole = tempfile::tempdir().unwrap();
    let source = Counting::new(&[2, 1, 2]);
    built(&source, whole.path()).unwrap();
    let text = fs::read(whole.path().join(FILE)).unwrap();
    for cut in 0..=text.len() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), &text[..cut]).unwrap();
        // Images of the episode in work, one of them half written.
        if cut % 7 == 0 {
            let half = folder.path().join("images/000001/eye");
            fs::create_dir_all(&half).unwrap();
            fs::write(half.join("000000.png"), b"\x89PN").unwrap();
        }
        let lines = text[..cut].split(|b| *b == b'\n').count() - 1;
        let progress = build_manifest(&source, folder.path(), |_| false).unwrap();
        assert_eq!(progress.found, lines.saturating_sub(1).min(3), "cut at {cut}");
        assert_eq!(fs::read(folder.path().join(FILE)).unwrap(), text, "cut at {cut}");
    }
}

#[test]
fn an_incomplete_or_foreign_manifest_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = Counting::new(&[2, 1, 2]);
    let progress = build_manifest(&source, folder.path(), |p| p.written == 2).unwrap();
    assert_eq!(progress.written, 2);
    let error = ManifestSource::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("after 2 episodes"), "{error}");
    let other = Counting::new(&[2, 1]);
    assert!(build_manifest(&other, folder.path(), |_| false).is_ok());
    let error = build_manifest(&source, folder.path(), |_| false).unwrap_err().to_string();
    assert!(error.contains("says it is complete"), "{error}");
}

#[test]
fn an_image_outside_the_folder_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    built(&Counting::new(&[1]), folder.path()).unwrap();
    let path = folder.path().join(FILE);
    let text = fs::read_to_string(&path).unwrap();
    for evil in ["../secret.png", "/etc/passwd"] {
        fs::write(&path, text.replace("images/000000/eye/000000.png", evil)).unwrap();
        let error = ManifestSource::open(folder.path()).unwrap().read(0, true).unwrap_err();
        assert!(error.to_string().contains("outside"), "{error}");
    }
    fs::write(&path, &text).unwrap();
    fs::remove_file(folder.path().join("images/000000/eye/000000.png")).unwrap();
    let manifest = ManifestSource::open(folder.path()).unwrap();
    assert!(manifest.read(0, false).is_ok());
    assert!(manifest.read(0, true).unwrap_err().to_string().contains("000000.png"));
}

#[test]
fn two_builders_do_not_write_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let source = Counting::new(&[2, 1, 2]);
    let mut refused = String::new();
    build_manifest(&source, folder.path(), |_| {
        refused = build_manifest(&source, folder.path(), |_| false).unwrap_err().to_string();
        false
    })
    .unwrap();
    assert!(refused.contains("another builder"), "{refused}");
}
