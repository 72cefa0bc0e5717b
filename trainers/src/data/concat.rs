//! Several sources of one kind as one, episode after episode.

use std::sync::Arc;

use super::{DataError, DemoEpisode, DemoSource, EpisodeMeta, SourceSpec};

/// The episodes of all parts in order.
pub struct Concat {
    parts: Vec<Arc<dyn DemoSource>>,
    episodes: Vec<EpisodeMeta>,
    places: Vec<(usize, usize)>,
}

impl Concat {
    /// Of at least one part; all show and do the same.
    ///
    /// # Errors
    /// [`DataError::Unsupported`] for no part, or parts that differ in what they show or do.
    pub fn new(parts: Vec<Arc<dyn DemoSource>>) -> Result<Self, DataError> {
        let Some(first) = parts.first().map(|part| part.spec().clone()) else {
            return Err(DataError::unsupported("join sources: there is none"));
        };
        let (mut episodes, mut places) = (Vec::new(), Vec::new());
        for (p, part) in parts.iter().enumerate() {
            let spec = part.spec();
            if (&spec.cameras, &spec.proprio, &spec.action)
                != (&first.cameras, &first.proprio, &first.action)
            {
                return Err(DataError::unsupported(format!(
                    "join `{}` to `{}`: they show or do different things",
                    spec.location, first.location
                )));
            }
            for (e, meta) in part.episodes().iter().enumerate() {
                episodes.push(EpisodeMeta {
                    id: format!("{}/{}", spec.location, meta.id),
                    ..meta.clone()
                });
                places.push((p, e));
            }
        }
        Ok(Self { parts, episodes, places })
    }
}

impl DemoSource for Concat {
    fn spec(&self) -> &SourceSpec {
        self.parts[0].spec()
    }

    fn episodes(&self) -> &[EpisodeMeta] {
        &self.episodes
    }

    fn read(&self, episode: usize, images: bool) -> Result<DemoEpisode, DataError> {
        let (part, episode) = self.places[episode];
        self.parts[part].read(episode, images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toys::Counting;

    #[test]
    fn episodes_follow_each_other_and_strangers_are_refused() {
        let part = |lens: &[usize]| Arc::new(Counting::new(lens)) as Arc<dyn DemoSource>;
        let both = Concat::new(vec![part(&[3, 4]), part(&[5])]).unwrap();
        let lens: Vec<_> = both.episodes().iter().map(|e| e.len).collect();
        assert_eq!(lens, [3, 4, 5]);
        assert_eq!(both.read(2, false).unwrap().len(), 5);
        assert_eq!(both.read(1, false).unwrap().proprio[[0, 0]], 100.0);
        assert!(Concat::new(Vec::new()).is_err());
    }
}
