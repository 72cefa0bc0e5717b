//! Tests of the loader.

use super::*;
use crate::data::toys::Counting;
use crate::data::{DemoSample, WindowDataset, WindowOptions};

fn data(broken: Option<usize>) -> Arc<dyn Dataset> {
    let mut source = Counting::new(&[7, 9, 8, 5]);
    source.broken = broken;
    let options = WindowOptions {
        n_obs_steps: 2,
        chunk_size: 3,
        cameras: vec!["eye".to_owned()],
        cache_bytes: 100,
        ..WindowOptions::default()
    };
    Arc::new(WindowDataset::new(Arc::new(source), vec![0, 1, 2, 3], options).unwrap())
}

fn config(threads: usize) -> LoaderConfig {
    LoaderConfig {
        batch_size: 4,
        threads,
        prefetch: 3,
        seed: 7,
        augment: Augment { brightness: 0.3, proprio_noise: vec![1.0, 0.0], ..Augment::default() },
        ..LoaderConfig::default()
    }
}

fn batches(loader: &mut Loader, n: usize) -> Vec<DemoBatch> {
    (0..n).map(|_| loader.next().unwrap()).collect()
}

#[test]
fn batches_do_not_depend_on_the_number_of_threads() {
    let start = LoaderPosition::default();
    let one = batches(&mut Loader::new(data(None), config(0), start).unwrap(), 20);
    for threads in [1, 2, 3, 5] {
        let many = batches(&mut Loader::new(data(None), config(threads), start).unwrap(), 20);
        assert!(one == many, "{threads}");
    }
}

#[test]
fn a_saved_position_continues_in_the_middle_of_an_epoch() {
    for threads in [0, 3] {
        let mut whole =
            Loader::new(data(None), config(threads), LoaderPosition::default()).unwrap();
        assert_eq!(whole.batches_per_epoch(), 7);
        let all = batches(&mut whole, 24);
        for cut in [0, 1, 6, 7, 10, 14] {
            let mut first =
                Loader::new(data(None), config(threads), LoaderPosition::default()).unwrap();
            batches(&mut first, cut);
            let position = first.position();
            assert_eq!(position, LoaderPosition { epoch: cut as u64 / 7, batch: cut as u64 % 7 });
            let text = serde_json::to_string(&position).unwrap();
            let position = serde_json::from_str(&text).unwrap();
            let mut second = Loader::new(data(None), config(threads), position).unwrap();
            assert!(batches(&mut second, 24 - cut) == all[cut..], "{threads} {cut}");
        }
    }
}

#[test]
fn an_epoch_holds_every_sample_once_and_the_next_has_another_order() {
    let mut config = LoaderConfig { drop_last: false, augment: Augment::default(), ..config(2) };
    let epoch = |loader: &mut Loader| -> Vec<(f32, f32)> {
        (0..loader.batches_per_epoch())
            .map(|_| loader.next().unwrap())
            .flat_map(|b| {
                b.proprio.outer_iter().map(|w| (w[[1, 0]], w[[1, 1]])).collect::<Vec<_>>()
            })
            .collect()
    };
    let mut loader = Loader::new(data(None), config.clone(), LoaderPosition::default()).unwrap();
    let (a, b) = (epoch(&mut loader), epoch(&mut loader));
    assert_ne!(a, b);
    let sorted = |v: &[(f32, f32)]| {
        let mut v = v.to_vec();
        v.sort_by(|a, b| a.partial_cmp(b).unwrap());
        v
    };
    assert_eq!(a.len(), 29);
    assert_eq!(sorted(&a), sorted(&b));
    config.shuffle = false;
    let mut plain = Loader::new(data(None), config, LoaderPosition::default()).unwrap();
    assert_eq!(epoch(&mut plain), sorted(&a));
}

#[test]
fn a_broken_episode_reaches_the_learner_by_name_and_the_rest_goes_on() {
    for threads in [0, 2] {
        let mut loader =
            Loader::new(data(Some(2)), config(threads), LoaderPosition::default()).unwrap();
        let answers: Vec<_> = (0..14).map(|_| loader.next()).collect();
        let errors: Vec<String> =
            answers.iter().filter_map(|a| a.as_ref().err()).map(ToString::to_string).collect();
        assert!(!errors.is_empty() && errors.len() < 14, "{}", errors.len());
        assert!(errors.iter().all(|e| e.contains("episode 2")), "{errors:?}");
        assert_eq!(loader.position(), LoaderPosition { epoch: 2, batch: 0 });
    }
}

struct Panics;

impl Dataset for Panics {
    fn len(&self) -> usize {
        8
    }
    fn get(&self, index: usize) -> Result<DemoSample, DataError> {
        panic!("sample {index} on purpose")
    }
}

#[test]
fn a_dead_thread_is_an_error_and_not_a_hang() {
    let mut loader = Loader::new(Arc::new(Panics), config(2), LoaderPosition::default()).unwrap();
    for _ in 0..4 {
        assert!(loader.next().unwrap_err().to_string().contains("died"));
    }
}

#[test]
fn a_hundred_loaders_are_dropped_at_any_moment_without_a_deadlock() {
    let data = data(None);
    let (done, waiting) = bounded(1);
    std::thread::spawn(move || {
        for i in 0..100 {
            let mut loader =
                Loader::new(Arc::clone(&data), config(1 + i % 4), LoaderPosition::default())
                    .unwrap();
            batches(&mut loader, i % 5);
        }
        done.send(()).unwrap();
    });
    waiting.recv_timeout(Duration::from_mins(1)).expect("100 loaders are dropped within a minute");
}

struct Slow(Arc<dyn Dataset>);

impl Dataset for Slow {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn get(&self, index: usize) -> Result<DemoSample, DataError> {
        std::thread::sleep(Duration::from_millis(5));
        self.0.get(index)
    }
}

#[test]
fn waiting_for_slow_data_is_counted() {
    let slow = Arc::new(Slow(data(None)));
    let mut loader = Loader::new(slow, config(1), LoaderPosition::default()).unwrap();
    batches(&mut loader, 5);
    assert!(loader.starved() > Duration::from_millis(20), "{:?}", loader.starved());
}

#[test]
fn impossible_settings_are_refused() {
    let start = LoaderPosition::default();
    let refused =
        |config, position| Loader::new(data(None), config, position).err().unwrap().to_string();
    assert!(refused(LoaderConfig { batch_size: 0, ..config(0) }, start).contains("batch_size"));
    assert!(refused(LoaderConfig { batch_size: 30, ..config(0) }, start).contains("29 samples"));
    assert!(refused(config(0), LoaderPosition { epoch: 0, batch: 7 }).contains("batch 7"));
}
