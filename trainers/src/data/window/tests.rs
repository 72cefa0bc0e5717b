//! Tests of windows.

use super::*;
use crate::data::toys::Counting;

fn windows(lens: &[usize], options: WindowOptions) -> WindowDataset {
    let source = Arc::new(Counting::new(lens));
    WindowDataset::new(source, (0..lens.len()).collect(), options).unwrap()
}

/// The step numbers in a chunk: the first number of an action is its step.
fn steps(sample: &DemoSample) -> Vec<f32> {
    sample.chunk.view().column(0).iter().map(|v| v % 100.0).collect()
}

fn obs_steps(sample: &DemoSample) -> Vec<f32> {
    sample.obs.iter().map(|o| o.proprio[0] % 100.0).collect()
}

#[test]
fn the_chunk_starts_at_the_present_step_or_with_the_window() {
    let options = WindowOptions { n_obs_steps: 3, chunk_size: 4, ..WindowOptions::default() };
    let current = windows(&[10], options.clone()).get(5).unwrap();
    assert_eq!(obs_steps(&current), [3.0, 4.0, 5.0]);
    assert_eq!(steps(&current), [5.0, 6.0, 7.0, 8.0]);
    let start = WindowOptions { align: Align::WindowStart, ..options };
    let start = windows(&[10], start).get(5).unwrap();
    assert_eq!(obs_steps(&start), [3.0, 4.0, 5.0]);
    assert_eq!(steps(&start), [3.0, 4.0, 5.0, 6.0]);
}

#[test]
fn both_ends_of_an_episode_are_padded_inside_it() {
    let options = WindowOptions {
        n_obs_steps: 3,
        chunk_size: 4,
        align: Align::WindowStart,
        ..WindowOptions::default()
    };
    let data = windows(&[5, 6], options);
    assert_eq!(data.len(), 11);
    let first = data.get(5).unwrap();
    assert_eq!((first.episode, first.step), (1, 0));
    assert_eq!(obs_steps(&first), [0.0, 0.0, 0.0]);
    assert_eq!(steps(&first), [0.0, 0.0, 0.0, 1.0]);
    assert_eq!(first.valid, [true; 4]);
    // Nothing of episode 1 leaks into the end of episode 0.
    let last = data.get(4).unwrap();
    assert_eq!(last.chunk.view()[[3, 0]], 4.0);
    assert_eq!(last.valid, [true, true, true, false]);
    let absolute: Vec<f32> = last.chunk.view().column(0).to_vec();
    let relative: Vec<f32> = last.chunk.view().column(1).to_vec();
    assert_eq!(absolute, [2.0, 3.0, 4.0, 4.0]);
    assert_eq!(relative, [20.0, 30.0, 40.0, 0.0]);
}

/// diffusion_policy `create_indices` with `pad_before = T_o - 1`, `pad_after = T_a - 1` (common/sampler.py):
/// starts from `-pad_before` to `L - horizon + pad_after`, both included.
#[test]
fn pad_after_gives_diffusion_policys_windows() {
    let (t_o, horizon, t_a) = (2, 16, 8);
    for lens in [vec![161, 118], vec![9, 20], vec![5]] {
        let data = windows(
            &lens,
            WindowOptions {
                n_obs_steps: t_o,
                chunk_size: horizon,
                align: Align::WindowStart,
                pad_after: Some(t_a - 1),
                ..WindowOptions::default()
            },
        );
        let mut expected = Vec::new();
        for (e, &len) in lens.iter().enumerate() {
            let (first, last) = (-(t_o as i64 - 1), len as i64 - horizon as i64 + t_a as i64 - 1);
            expected.extend((first..=last).map(|start| (e, start)));
        }
        let got: Vec<(usize, i64)> = (0..data.len())
            .map(|i| data.get(i).unwrap())
            .map(|s| (s.episode, s.step as i64 - (t_o as i64 - 1)))
            .collect();
        assert_eq!(got, expected);
    }
}

#[test]
fn a_batch_equals_its_samples_stacked() {
    for align in [Align::Current, Align::WindowStart] {
        let options = WindowOptions {
            n_obs_steps: 2,
            chunk_size: 5,
            align,
            cameras: vec!["eye".to_owned()],
            cache_bytes: 200, // two of the three episodes
            ..WindowOptions::default()
        };
        let data = windows(&[7, 1, 6], options);
        let indices: Vec<usize> = (0..data.len()).rev().chain([3, 3]).collect();
        let samples: Vec<DemoSample> = indices.iter().map(|&i| data.get(i).unwrap()).collect();
        assert_eq!(data.batch(&indices).unwrap(), DemoBatch::stack(&samples).unwrap());
        assert!(data.cache.bytes() <= 200);
        // Identifiable pixels: the frame of step t of episode e is filled with 10 e + t.
        let at = samples.iter().position(|s| (s.episode, s.step) == (2, 4)).unwrap();
        assert_eq!(data.batch(&indices).unwrap().images["eye"][[at, 0, 1, 1, 2]], 23);
    }
}

#[test]
fn frames_are_read_ahead_as_far_as_the_cache_holds_them() {
    let options = WindowOptions { cameras: vec!["eye".to_owned()], ..WindowOptions::default() };
    let data = windows(&[7, 1, 6], options.clone());
    assert_eq!(data.cache.bytes(), 0);
    data.preload().unwrap();
    assert_eq!(data.frame_bytes(), 14 * 2 * 2 * 3);
    assert_eq!(data.cache.bytes() as u64, data.frame_bytes());
    let small = windows(&[7, 1, 6], WindowOptions { cache_bytes: 100, ..options });
    small.preload().unwrap();
    assert!((1..=100).contains(&small.cache.bytes()));
    let blind = windows(&[7], WindowOptions::default());
    blind.preload().unwrap();
    assert_eq!((blind.cache.bytes(), blind.frame_bytes()), (0, 0));
}

#[test]
fn frames_are_resized_and_a_missing_camera_is_black() {
    let options = WindowOptions {
        chunk_size: 2,
        cameras: vec!["eye".to_owned(), "wrist".to_owned()],
        resize: Some([5, 3]),
        black_if_missing: true,
        ..WindowOptions::default()
    };
    let batch = windows(&[4], options).batch(&[2, 0]).unwrap();
    assert_eq!(batch.images["eye"].dim(), (2, 1, 5, 3, 3));
    assert!(batch.images["eye"].index_axis(Axis(0), 0).iter().all(|v| *v == 2));
    assert!(batch.images["wrist"].iter().all(|v| *v == 0));
    assert_eq!(batch.images["wrist"].dim(), (2, 1, 5, 3, 3));
}

#[test]
fn chosen_episodes_are_the_only_ones() {
    let source = Arc::new(Counting::new(&[4, 5, 6]));
    let data = WindowDataset::new(source, vec![2, 0], WindowOptions::default()).unwrap();
    assert_eq!(data.len(), 10);
    assert!((0..10).all(|i| data.get(i).unwrap().episode != 1));
    assert_eq!(data.actions().nrows(), 10);
}

#[test]
fn wrong_settings_and_numbers_are_named() {
    let source = |e: Counting| -> Arc<dyn DemoSource> { Arc::new(e) };
    let new = |s: Counting, e: Vec<usize>, o: WindowOptions| {
        WindowDataset::new(source(s), e, o).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let base = WindowOptions::default;
    let lens = [4usize, 5];
    let camera = WindowOptions { cameras: vec!["wrist".to_owned()], ..base() };
    assert!(new(Counting::new(&lens), vec![0], camera).contains("no camera `wrist`"));
    assert!(new(Counting::new(&lens), vec![2], base()).contains("no episode 2"));
    assert!(new(Counting::new(&lens), vec![], base()).contains("no episode"));
    let short =
        WindowOptions { n_obs_steps: 4, chunk_size: 3, align: Align::WindowStart, ..base() };
    assert!(new(Counting::new(&lens), vec![0], short).contains("chunk_size"));
    let mut nan = Counting::new(&lens);
    nan.poison = Some((1, 3));
    let message = new(nan, vec![0, 1], base());
    assert!(message.contains("episode 1") && message.contains("step 3"), "{message}");
    let out = windows(&[4], base());
    assert!(out.get(4).is_err() && out.batch(&[0, 4]).is_err());
}
