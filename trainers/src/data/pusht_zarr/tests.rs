//! Tests of the PushT reader.

use super::*;
use crate::data::zarr_writer::{write, write_pusht};
use std::fs;

/// The real store, where it is there.
fn real() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/data/pusht/pusht_cchi_v7_replay.zarr");
    let found = recognise(&path).is_some();
    if !found {
        println!("skipped: {} is not there", path.display());
    }
    found.then_some(path)
}

/// Reference sums by zarr-python 2.18.3, numcodecs 0.12.1, numpy 1.26, f64:
///
/// ```python
/// z = zarr.open("pusht_cchi_v7_replay.zarr", "r"); f = lambda k: z["data/" + k][:].astype("f8")
/// ends = z["meta/episode_ends"][:]; len(ends), ends.sum(); f("action").sum(0); f("state").sum(0)
/// s = np.r_[0, ends[:-1]]
/// sum((i + 1) * f("action")[b:e].sum() for i, (b, e) in enumerate(zip(s, ends)))   # and "state"
/// ```
#[test]
fn all_206_episodes_have_zarr_pythons_sums() {
    let Some(path) = real() else { return };
    let source = PushtZarr::open(&path, PushtObs::State).unwrap();
    assert_eq!(source.episodes().len(), 206);
    assert_eq!(source.starts[1..].iter().sum::<usize>(), 2_612_905);
    let (mut action, mut state) = ([0.0; 2], [0.0; 5]);
    let (mut weighted_action, mut weighted_state) = (0.0, 0.0);
    let mut steps = 0;
    for e in 0..206 {
        let episode = source.read(e, true).unwrap();
        assert_eq!(episode.len(), source.episodes()[e].len);
        assert!(episode.images.is_empty());
        steps += episode.len();
        for row in episode.actions.rows() {
            action.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v));
        }
        for row in episode.proprio.rows() {
            state.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v));
        }
        let total = |a: &Array2<f32>| a.iter().map(|&v| f64::from(v)).sum::<f64>();
        weighted_action += (e + 1) as f64 * total(&episode.actions);
        weighted_state += (e + 1) as f64 * total(&episode.proprio);
    }
    assert_eq!(steps, 25_650);
    assert_eq!(action, [5_854_347.0, 7_540_820.0]);
    assert_eq!(weighted_action, 1_425_458_362.0);
    let expected = [
        5_876_697.866_961_479,
        7_523_433.202_793_121,
        6_322_626.527_389_526,
        6_986_089.311_058_044,
        46_670.006_990_249_44,
    ];
    for (got, expected) in state.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-9 * expected, "{got} {expected}");
    }
    assert!((weighted_state / 2_839_573_507.463_268_3 - 1.0).abs() < 1e-12);
}

/// `np.rint(z["data/img"][i:i+161]).astype("u1").astype("i8").sum()` over all chunks: 176818237305, the first three
/// 1109968570, 1109809122, 1110263267; no pixel differs from its rounding.
#[test]
fn images_have_zarr_pythons_sums() {
    let Some(path) = real() else { return };
    let source = PushtZarr::open(&path, PushtObs::PixelsAgentPos).unwrap();
    // The first 161 rows are episode 0 and a chunk. `SIMLOOP_ALL_IMAGES=1` sums all 2.8 GB.
    let (episodes, expected) = if std::env::var_os("SIMLOOP_ALL_IMAGES").is_some() {
        (206, 176_818_237_305_u64)
    } else {
        (1, 1_109_968_570)
    };
    let mut sum = 0;
    for e in 0..episodes {
        let images = source.read(e, true).unwrap().images;
        let frames = &images[CAMERA];
        assert_eq!(frames.len(), source.episodes()[e].len);
        for t in 0..frames.len() {
            sum += frames.get(t).unwrap().iter().map(|&v| u64::from(v)).sum::<u64>();
        }
    }
    assert_eq!(sum, expected);
    assert!(source.images.unwrap().kept.lock().unwrap().len() <= CHUNKS_KEPT);
}

/// A frame of the data set and the environment's picture of its state.
#[test]
fn frames_and_numbers_are_those_of_the_environment() {
    let Some(path) = real() else { return };
    let source = PushtZarr::open(&path, PushtObs::PixelsAgentPos).unwrap();
    let states = PushtZarr::open(&path, PushtObs::State).unwrap().read(0, false).unwrap();
    let keypoints = PushtZarr::open(&path, PushtObs::EnvironmentStateAgentPos).unwrap();
    let keypoints = keypoints.read(0, false).unwrap();
    let episode = source.read(0, true).unwrap();
    for t in [0, 60, 160] {
        let s: Vec<f64> = states.proprio.row(t).iter().map(|&v| f64::from(v)).collect();
        let exact = vec![s[0], s[1], 0.0, 0.0, s[2], s[3], s[4]];
        for obs in [PushtObs::PixelsAgentPos, PushtObs::EnvironmentStateAgentPos] {
            let mut env = PushtEnv::new(PushtConfig { obs, ..PushtConfig::default() }).unwrap();
            let options =
                simloop_envs::ResetOptions { state: Some(exact.clone()), ..Default::default() };
            let (seen, _) = env.reset(Some(0), &options).unwrap();
            if obs.has_image() {
                assert_eq!(seen.proprio, episode.proprio.row(t));
                let frame = episode.images[CAMERA].get(t).unwrap();
                let drawn = &seen.images[CAMERA];
                let mean =
                    frame.iter().zip(drawn).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>()
                        / frame.len() as f64;
                // The recording drew a green goal with another routine.
                assert!(mean < 12.0, "step {t}: {mean}");
            } else {
                let worst = (&keypoints.proprio.row(t) - &seen.proprio).mapv(f32::abs);
                assert!(worst.iter().all(|&d| d < 1e-3), "{worst}");
            }
        }
    }
    let env =
        PushtEnv::new(PushtConfig { obs: PushtObs::PixelsAgentPos, ..PushtConfig::default() })
            .unwrap();
    assert_eq!(source.spec().proprio, env.spec().observation.proprio.names);
    assert_eq!(source.spec().cameras, env.spec().observation.images);
    assert_eq!(source.spec().convention.as_ref(), Some(&env.spec().convention));
}

/// A small store: episodes of 3 and 4 steps, 4x4 frames.
fn small(folder: &Path) {
    write_pusht(folder, &[3, 4], 4);
}

#[test]
fn pixels_are_rounded_as_numpy_does_and_nothing_else_is_a_pixel() {
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let all: Vec<f32> = (0..=255u8).map(f32::from).collect();
    assert_eq!(pixels(&bytes(&all)), Some((0..=255).collect()));
    // np.rint: 0.5 and 2.5 go to even.
    assert_eq!(pixels(&bytes(&[0.4, 0.5, 1.5, 2.5, 254.6])), Some(vec![0, 0, 2, 2, 255]));
    for wrong in [-0.1, 255.1, f32::NAN, f32::INFINITY] {
        assert_eq!(pixels(&bytes(&[1.0, wrong])), None);
    }
}

#[test]
fn episodes_cross_chunks() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let source = PushtZarr::open(folder.path(), PushtObs::Pixels).unwrap();
    let second = source.read(1, true).unwrap();
    assert_eq!((second.proprio.dim(), second.actions[[0, 0]]), ((4, 0), 6.0));
    let frame = second.images[CAMERA].get(2).unwrap();
    assert_eq!(frame[[1, 2, 0]], ((5 * 48 + 12 + 6) % 251) as u8);
    assert!(source.read(2, false).is_err());
}

#[test]
fn damage_is_named_by_array_and_episode() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let open = |obs| PushtZarr::open(folder.path(), obs);
    fs::remove_file(folder.path().join("data/img/2.0.0.0")).unwrap();
    assert!(open(PushtObs::State).is_ok());
    let error = open(PushtObs::Pixels).unwrap().read(1, true).unwrap_err().to_string();
    assert!(error.contains("2.0.0.0"), "{error}");
    let bright: Vec<u8> = (0..7 * 48).flat_map(|_| 300f32.to_le_bytes()).collect();
    write(&folder.path().join("data/img"), "<f4", &[7, 4, 4, 3], 2, &bright);
    let error = open(PushtObs::Pixels).unwrap().read(1, true).unwrap_err().to_string();
    assert!(error.contains("episode 1") && error.contains("0..255"), "{error}");
    write(&folder.path().join("data/action"), "<f4", &[6, 2], 4, &[0; 48]);
    assert!(open(PushtObs::State).unwrap_err().to_string().contains("6 rows"));
    let ends: Vec<u8> = [3i64, 2].iter().flat_map(|v| v.to_le_bytes()).collect();
    write(&folder.path().join("meta/episode_ends"), "<i8", &[2], 8, &ends);
    assert!(open(PushtObs::State).unwrap_err().to_string().contains("episode 1"));
}
