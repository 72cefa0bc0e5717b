//! What an environment shows: plain data, `Send`, cheap to clone.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{ArcArray, ArcArray1, Ix3};
use serde::{Deserialize, Serialize};

/// One camera image, `[H, W, 3]` RGB u8, upright (row 0 is the top). Cloning shares the pixels.
pub type Frame = ArcArray<u8, Ix3>;

/// What a policy may look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// Camera name to frame. Empty where frames were not asked for (see [`FrameRequest`](crate::FrameRequest)).
    pub images: BTreeMap<String, Frame>,
    /// `[P]`; names and units are in [`ObservationSpace`](crate::ObservationSpace).
    pub proprio: ArcArray1<f32>,
    /// What to do, in words.
    pub instruction: Arc<str>,
}

/// What an environment says beside the observation. A policy under evaluation never sees it; a scripted expert does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Info {
    /// Whether the task is solved now; `None` where the environment cannot tell.
    pub success: Option<bool>,
    /// Named numbers, e.g. PushT's `coverage`.
    pub metrics: BTreeMap<String, f64>,
    /// The true state, where the environment was configured to show it.
    pub privileged: Option<Privileged>,
}

/// Where each named part of a [`Privileged`] vector lies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PrivilegedLayout {
    fields: BTreeMap<String, (usize, usize)>,
    len: usize,
}

impl PrivilegedLayout {
    /// A layout of `(name, length)` fields, one after the other. A name that comes twice keeps its last place.
    pub fn new<S: Into<String>>(fields: impl IntoIterator<Item = (S, usize)>) -> Self {
        let mut layout = Self::default();
        for (name, len) in fields {
            layout.fields.insert(name.into(), (layout.len, len));
            layout.len += len;
        }
        layout
    }

    /// The number of f64 in a vector of this layout.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Field names in the order of the vector, each with its length: what [`new`](Self::new) was given.
    pub fn segments(&self) -> impl Iterator<Item = (&str, usize)> {
        let mut ordered: Vec<_> = self.fields.iter().collect();
        ordered.sort_by_key(|(_, place)| **place);
        ordered.into_iter().map(|(name, &(_, len))| (name.as_str(), len))
    }

    /// Field names in alphabetical order, each with its length.
    pub fn fields(&self) -> impl Iterator<Item = (&str, usize)> {
        self.fields.iter().map(|(name, &(_, len))| (name.as_str(), len))
    }
}

/// The simulator's true state as one f64 vector with named parts (metres, radians, quaternions xyzw; pixels for PushT).
///
/// The layout is shared by all steps of an episode.
#[derive(Clone, Debug, PartialEq)]
pub struct Privileged {
    layout: Arc<PrivilegedLayout>,
    values: Arc<[f64]>,
}

impl Privileged {
    /// Joins values to their layout; `None` if the lengths differ.
    pub fn new(layout: Arc<PrivilegedLayout>, values: Arc<[f64]>) -> Option<Self> {
        (layout.len() == values.len()).then_some(Self { layout, values })
    }

    /// The named part.
    pub fn get(&self, name: &str) -> Option<&[f64]> {
        let &(start, len) = self.layout.fields.get(name)?;
        self.values.get(start..start + len)
    }

    /// The named part if it has exactly `N` numbers.
    pub fn array<const N: usize>(&self, name: &str) -> Option<[f64; N]> {
        self.get(name)?.try_into().ok()
    }

    /// All numbers in layout order.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Where each part lies.
    pub fn layout(&self) -> &Arc<PrivilegedLayout> {
        &self.layout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_parts_are_found_by_name_and_length() {
        let layout = Arc::new(PrivilegedLayout::new([("b", 2), ("a", 1)]));
        let state = Privileged::new(Arc::clone(&layout), Arc::from([1.0, 2.0, 3.0])).unwrap();
        assert_eq!(state.get("b"), Some(&[1.0, 2.0][..]));
        assert_eq!(state.array::<1>("a"), Some([3.0]));
        assert_eq!(state.array::<2>("a"), None);
        assert_eq!(state.get("c"), None);
        assert!(Privileged::new(layout, Arc::from([1.0])).is_none());
    }
}
