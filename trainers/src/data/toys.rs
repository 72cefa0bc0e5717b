//! Sources for tests: every number says where it comes from.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{Array2, Array3};
use simloop_envs::ImageSpace;

use super::{DataError, DemoEpisode, DemoSource, EpisodeMeta, Frames, SourceSpec};

/// Episode `e` at step `t`: proprio `[100 e + t, t]`, action `[t absolute, 10 t relative]`, frames of camera `eye`,
/// 2x2, filled with `10 e + t`.
pub(crate) struct Counting {
    spec: SourceSpec,
    episodes: Vec<EpisodeMeta>,
    /// An (episode, step) whose action is not a number.
    pub(crate) poison: Option<(usize, usize)>,
    /// An episode that cannot be read with its images.
    pub(crate) broken: Option<usize>,
}

impl Counting {
    pub(crate) fn new(lens: &[usize]) -> Self {
        let spec = SourceSpec {
            format: "counting".to_owned(),
            location: "nowhere".to_owned(),
            cameras: BTreeMap::from([("eye".to_owned(), ImageSpace { height: 2, width: 2 })]),
            proprio: vec!["where".to_owned(), "step".to_owned()],
            action: vec!["absolute".to_owned(), "relative".to_owned()],
            absolute_action: vec![true, false],
            convention: None,
            control_hz: None,
        };
        let episodes = lens
            .iter()
            .enumerate()
            .map(|(e, &len)| EpisodeMeta {
                len,
                instruction: Arc::from(format!("do {e}")),
                id: format!("episode {e}"),
            })
            .collect();
        Self { spec, episodes, poison: None, broken: None }
    }
}

impl DemoSource for Counting {
    fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    fn episodes(&self) -> &[EpisodeMeta] {
        &self.episodes
    }

    fn read(&self, episode: usize, images: bool) -> Result<DemoEpisode, DataError> {
        let meta = &self.episodes[episode];
        if images && self.broken == Some(episode) {
            return Err(DataError::episode("nowhere".as_ref(), episode, "it is broken on purpose"));
        }
        let mut actions = Array2::from_shape_fn((meta.len, 2), |(t, d)| (t * [1, 10][d]) as f32);
        if let Some((_, step)) = self.poison.filter(|(e, _)| *e == episode) {
            actions[[step, 1]] = f32::NAN;
        }
        let frame = |t| Array3::from_elem((2, 2, 3), (10 * episode + t) as u8).into_shared();
        Ok(DemoEpisode {
            instruction: Arc::clone(&meta.instruction),
            proprio: Array2::from_shape_fn((meta.len, 2), |(t, d)| {
                (t + [100 * episode, 0][d]) as f32
            }),
            actions,
            images: if images {
                BTreeMap::from([(
                    "eye".to_owned(),
                    Frames::Raw((0..meta.len).map(frame).collect()),
                )])
            } else {
                BTreeMap::new()
            },
        })
    }
}
