//! Which episodes train and which validate.

use simloop_envs::SeedTree;

use super::EpisodeMeta;

/// Episodes by number, in ascending order; no episode is in both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Episodes to learn from.
    pub train: Vec<usize>,
    /// Episodes to measure on.
    pub validation: Vec<usize>,
}

/// Puts each episode wholly into one part: the `round(fraction * episodes)` episodes with the smallest key validate, an
/// episode's key being drawn from the seed and its own id. So the parts do not depend on the order of the episodes, and
/// when episodes are added few others change sides. A fraction above 0 validates at least one episode, and at least one
/// always trains.
///
/// Episodes of one id (copies) go to the same part, the first copy's; the counts may then be off by the copies.
pub fn split(episodes: &[EpisodeMeta], fraction: f64, seed: u64) -> Split {
    let node = SeedTree::new(seed).child("split");
    let mut keys: Vec<(u64, &str)> =
        episodes.iter().map(|e| (node.child(&e.id).seed(), e.id.as_str())).collect();
    keys.sort_unstable();
    keys.dedup();
    let wanted = (fraction.clamp(0.0, 1.0) * keys.len() as f64).round() as usize;
    let least = usize::from(fraction > 0.0);
    let count = wanted.max(least).min(keys.len().saturating_sub(1));
    let mut parts = Split::default();
    for (i, episode) in episodes.iter().enumerate() {
        let key = (node.child(&episode.id).seed(), episode.id.as_str());
        if keys[..count].binary_search(&key).is_ok() {
            parts.validation.push(i);
        } else {
            parts.train.push(i);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::Arc;

    fn episodes(ids: impl IntoIterator<Item = usize>) -> Vec<EpisodeMeta> {
        ids.into_iter()
            .map(|i| EpisodeMeta { len: 10, instruction: Arc::from("go"), id: format!("demo_{i}") })
            .collect()
    }

    #[test]
    fn every_episode_is_in_one_part_and_the_seed_decides_which() {
        let all = episodes(0..100);
        let a = split(&all, 0.1, 0);
        assert_eq!(a.validation.len(), 10);
        let both: BTreeSet<usize> = a.train.iter().chain(&a.validation).copied().collect();
        assert_eq!((both.len(), a.train.len()), (100, 90));
        assert_eq!(a, split(&all, 0.1, 0));
        assert_ne!(a, split(&all, 0.1, 1));
        assert_eq!(split(&all, 0.0, 0).validation, Vec::<usize>::new());
        assert_eq!(split(&all, 1.0, 0).train.len(), 1);
        assert_eq!(split(&episodes(0..2), 0.01, 0).validation.len(), 1);
    }

    #[test]
    fn the_order_of_the_episodes_does_not_matter() {
        let names = |all: &[EpisodeMeta]| -> BTreeSet<String> {
            split(all, 0.2, 5).validation.iter().map(|&i| all[i].id.clone()).collect()
        };
        assert_eq!(names(&episodes(0..50)), names(&episodes((0..50).rev())));
        // Ten more episodes move few of the others.
        let (before, after) = (names(&episodes(0..50)), names(&episodes(0..60)));
        assert!(before.intersection(&after).count() >= 7, "{before:?} {after:?}");
    }

    #[test]
    fn copies_of_an_episode_do_not_leak_into_validation() {
        let twice: Vec<EpisodeMeta> = episodes((0..40).chain(0..40));
        let parts = split(&twice, 0.25, 3);
        assert_eq!((parts.validation.len(), parts.train.len()), (20, 60));
        for &i in &parts.validation {
            assert!(parts.validation.contains(&((i + 40) % 80)));
        }
    }
}
