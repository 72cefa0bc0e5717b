//! Experience to learn from more than once.
//!
//! Everything lies in flat arrays, images as u8, so that a million decisions from state cost their numbers and nothing
//! else. When the buffer is full the oldest decision makes room.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng as _;
use simloop_envs::{Observation, SeedTree};
use simloop_policies::ObsBatch;
use tch::{Device, Kind, Tensor};

use crate::AlgoError;

/// A decision in the buffer.
#[derive(Clone, Debug)]
pub struct Experience<'a> {
    /// What was seen, `T_o` observations.
    pub window: &'a [Observation],
    /// What was done, `[T_a D]`, normalised.
    pub action: &'a [f32],
    /// The reward of the executed steps, discounted within them.
    pub reward: f32,
    /// `γ^steps`, 0 where nothing follows.
    pub discount: f32,
    /// The true successor, `T_o` observations.
    pub next: &'a [Observation],
}

/// `B` decisions as tensors.
#[derive(Debug)]
pub struct TransitionBatch {
    /// What was seen.
    pub obs: ObsBatch,
    /// `[B, T_a D]`, normalised.
    pub action: Tensor,
    /// `[B]`.
    pub reward: Tensor,
    /// `[B]`.
    pub discount: Tensor,
    /// What followed.
    pub next: ObsBatch,
}

/// One camera's frames.
#[derive(Clone, Debug, PartialEq)]
struct Pixels {
    /// `[H, W, 3]`.
    size: [usize; 3],
    /// `[capacity, 2, T_o, H, W, 3]`: seen, then next.
    bytes: Vec<u8>,
}

/// A ring of decisions; see the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    capacity: usize,
    len: usize,
    at: usize,
    cameras: Vec<String>,
    /// `[T_o, P]` and `T_a D`, known from the first decision on.
    shape: Option<(usize, usize, usize)>,
    proprio: Vec<f32>,
    action: Vec<f32>,
    reward: Vec<f32>,
    discount: Vec<f32>,
    instruction: Vec<u32>,
    texts: Vec<Arc<str>>,
    images: BTreeMap<String, Pixels>,
}

impl Replay {
    /// Room for `capacity` decisions, seen through `cameras`.
    ///
    /// # Errors
    /// [`AlgoError::Range`] for no room.
    pub fn new(capacity: usize, cameras: &[String]) -> Result<Self, AlgoError> {
        if capacity == 0 {
            return Err(AlgoError::Range { what: "capacity", got: 0.0, range: "[1, inf)" });
        }
        Ok(Self {
            capacity,
            len: 0,
            at: 0,
            cameras: cameras.to_vec(),
            shape: None,
            proprio: Vec::new(),
            action: Vec::new(),
            reward: Vec::new(),
            discount: Vec::new(),
            instruction: Vec::new(),
            texts: Vec::new(),
            images: BTreeMap::new(),
        })
    }

    /// Decisions in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes one in.
    ///
    /// # Errors
    /// [`AlgoError::Shape`] for a window or action of another size than the first one's; [`AlgoError::NotFinite`] for
    /// numbers that are none: nothing is changed then.
    pub fn push(&mut self, one: &Experience<'_>) -> Result<(), AlgoError> {
        let p = one.window.first().map_or(0, |o| o.proprio.len());
        let shape = *self.shape.get_or_insert((one.window.len(), p, one.action.len()));
        let fits = |window: &[Observation]| {
            window.len() == shape.0 && window.iter().all(|o| o.proprio.len() == shape.1)
        };
        if !fits(one.window) || !fits(one.next) {
            return Err(AlgoError::Shape { what: "window", got: p, expected: shape.1 });
        }
        if one.action.len() != shape.2 {
            return Err(AlgoError::Shape {
                what: "action",
                got: one.action.len(),
                expected: shape.2,
            });
        }
        let both = || one.window.iter().chain(one.next);
        let proprio = || both().flat_map(|o| o.proprio.iter().copied());
        for (what, good) in [
            ("proprio", proprio().all(f32::is_finite)),
            ("action", one.action.iter().all(|v| v.is_finite())),
            ("reward", one.reward.is_finite()),
        ] {
            if !good {
                return Err(AlgoError::NotFinite { what });
            }
        }
        for camera in &self.cameras {
            for obs in both() {
                let frame = obs.images.get(camera);
                let size: [usize; 3] = frame.map_or([0; 3], |f| f.dim().into());
                let pixels = self
                    .images
                    .entry(camera.clone())
                    .or_insert_with(|| Pixels { size, bytes: Vec::new() });
                // The successor of a decision that ended the task may come without its image; nothing looks at it.
                let missing = frame.is_none() && one.discount == 0.0;
                if pixels.size != size && !missing {
                    return Err(AlgoError::Shape {
                        what: "frame",
                        got: size.iter().product(),
                        expected: pixels.size.iter().product(),
                    });
                }
            }
        }
        let text = &one.window[0].instruction;
        let text = self.texts.iter().position(|t| t == text).unwrap_or_else(|| {
            self.texts.push(Arc::clone(text));
            self.texts.len() - 1
        });
        let at = self.at;
        put(&mut self.proprio, at, proprio());
        put(&mut self.action, at, one.action.iter().copied());
        put(&mut self.reward, at, [one.reward].into_iter());
        put(&mut self.discount, at, [one.discount].into_iter());
        put(&mut self.instruction, at, [text as u32].into_iter());
        for (camera, pixels) in &mut self.images {
            let blank = vec![0u8; pixels.size.iter().product()];
            let frames = one.window.iter().chain(one.next).map(|o| o.images.get(camera));
            let bytes: Vec<u8> = frames
                .flat_map(|frame| match frame {
                    Some(frame) => frame.iter().copied().collect::<Vec<u8>>(),
                    None => blank.clone(),
                })
                .collect();
            put(&mut pixels.bytes, at, bytes.into_iter());
        }
        self.at = (at + 1) % self.capacity;
        self.len = (self.len + 1).min(self.capacity);
        Ok(())
    }

    /// `n` decisions drawn uniformly with replacement from `node`.
    ///
    /// # Errors
    /// [`AlgoError::Shape`] if there is none.
    pub fn sample(
        &self,
        n: usize,
        node: &SeedTree,
        device: Device,
    ) -> Result<TransitionBatch, AlgoError> {
        let Some((t, p, l)) = self.shape.filter(|_| self.len > 0) else {
            return Err(AlgoError::Shape { what: "replay", got: 0, expected: 1 });
        };
        let mut rng = node.rng();
        let rows: Vec<usize> = (0..n).map(|_| rng.random_range(0..self.len)).collect();
        let gather = |of: &[f32], width: usize, from: usize, len: usize| {
            let mut out = Vec::with_capacity(n * len);
            for &row in &rows {
                out.extend_from_slice(&of[row * width + from..row * width + from + len]);
            }
            Tensor::from_slice(&out)
        };
        let (n, size) = (n as i64, [n as i64, t as i64, p as i64]);
        let proprio = |part: usize| {
            gather(&self.proprio, 2 * t * p, part * t * p, t * p).reshape(size).to_device(device)
        };
        let instructions = || -> Vec<Arc<str>> {
            rows.iter()
                .map(|&row| Arc::clone(&self.texts[self.instruction[row] as usize]))
                .collect()
        };
        let images = |part: usize| -> BTreeMap<String, Tensor> {
            self.images
                .iter()
                .map(|(camera, pixels)| {
                    let frame: usize = pixels.size.iter().product();
                    let mut out = Vec::with_capacity(rows.len() * t * frame);
                    for &row in &rows {
                        let start = (row * 2 + part) * t * frame;
                        out.extend_from_slice(&pixels.bytes[start..start + t * frame]);
                    }
                    let [h, w, c] = pixels.size.map(|v| v as i64);
                    let tensor = Tensor::from_slice(&out).reshape([n, t as i64, h, w, c]);
                    (camera.clone(), tensor.to_device(device))
                })
                .collect()
        };
        Ok(TransitionBatch {
            obs: ObsBatch { images: images(0), proprio: proprio(0), instructions: instructions() },
            action: gather(&self.action, l, 0, l).reshape([n, l as i64]).to_device(device),
            reward: gather(&self.reward, 1, 0, 1).to_device(device),
            discount: gather(&self.discount, 1, 0, 1).to_device(device),
            next: ObsBatch { images: images(1), proprio: proprio(1), instructions: instructions() },
        })
    }

    /// Everything in it as tensors, for a checkpoint.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let (t, p, l) = self.shape.unwrap_or((0, 0, 0));
        let numbers = [self.capacity, self.len, self.at, t, p, l].map(|v| v as i64);
        let texts: Vec<u8> = self.texts.join("\n").into_bytes();
        let instruction: Vec<i64> = self.instruction.iter().map(|&v| i64::from(v)).collect();
        let mut state = BTreeMap::from([
            ("shape".to_owned(), Tensor::from_slice(&numbers)),
            ("proprio".to_owned(), Tensor::from_slice(&self.proprio)),
            ("action".to_owned(), Tensor::from_slice(&self.action)),
            ("reward".to_owned(), Tensor::from_slice(&self.reward)),
            ("discount".to_owned(), Tensor::from_slice(&self.discount)),
            ("instruction".to_owned(), Tensor::from_slice(&instruction)),
            ("texts".to_owned(), Tensor::from_slice(&texts)),
        ]);
        for (camera, pixels) in &self.images {
            let size = pixels.size.map(|v| v as i64);
            state.insert(format!("size.{camera}"), Tensor::from_slice(&size));
            state.insert(format!("images.{camera}"), Tensor::from_slice(&pixels.bytes));
        }
        state
    }

    /// Goes on from [`Replay::state`].
    ///
    /// # Errors
    /// [`AlgoError::Policy`] naming what is missing; [`AlgoError::Shape`] for another capacity.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), AlgoError> {
        let find = |name: &str| {
            state.get(name).ok_or_else(|| {
                AlgoError::Policy(simloop_policies::PolicyError::Config {
                    detail: format!("load the replay: `{name}` is missing"),
                })
            })
        };
        let floats = |name: &str| -> Result<Vec<f32>, AlgoError> {
            let tensor = find(name)?.to_kind(Kind::Float).contiguous();
            let mut out = vec![0f32; tensor.numel()];
            let n = out.len();
            tensor.copy_data(&mut out, n);
            Ok(out)
        };
        let longs = |name: &str| -> Result<Vec<i64>, AlgoError> {
            let tensor = find(name)?.to_kind(Kind::Int64).contiguous();
            let mut out = vec![0i64; tensor.numel()];
            let n = out.len();
            tensor.copy_data(&mut out, n);
            Ok(out)
        };
        let bytes = |name: &str| -> Result<Vec<u8>, AlgoError> {
            let tensor = find(name)?.to_kind(Kind::Uint8).contiguous();
            let mut out = vec![0u8; tensor.numel()];
            let n = out.len();
            tensor.copy_data(&mut out, n);
            Ok(out)
        };
        let shape = longs("shape")?;
        let [capacity, len, at, t, p, l] = shape[..] else {
            return Err(AlgoError::Shape { what: "shape", got: shape.len(), expected: 6 });
        };
        if capacity as usize != self.capacity {
            return Err(AlgoError::Shape {
                what: "capacity",
                got: capacity as usize,
                expected: self.capacity,
            });
        }
        let (len, t, p, l) = (len as usize, t as usize, p as usize, l as usize);
        let fresh = Self {
            len,
            at: at as usize,
            shape: (len > 0).then_some((t, p, l)),
            proprio: floats("proprio")?,
            action: floats("action")?,
            reward: floats("reward")?,
            discount: floats("discount")?,
            instruction: longs("instruction")?.into_iter().map(|v| v as u32).collect(),
            texts: String::from_utf8_lossy(&bytes("texts")?).split('\n').map(Arc::from).collect(),
            images: self
                .cameras
                .iter()
                .filter(|_| len > 0)
                .map(|camera| {
                    let size = longs(&format!("size.{camera}"))?;
                    let [h, w, c] = size[..] else {
                        return Err(AlgoError::Shape {
                            what: "frame",
                            got: size.len(),
                            expected: 3,
                        });
                    };
                    let size = [h as usize, w as usize, c as usize];
                    let bytes = bytes(&format!("images.{camera}"))?;
                    Ok((camera.clone(), Pixels { size, bytes }))
                })
                .collect::<Result<_, _>>()?,
            ..Self::new(self.capacity, &self.cameras)?
        };
        for (what, got, expected) in [
            ("proprio", fresh.proprio.len(), len * 2 * t * p),
            ("action", fresh.action.len(), len * l),
            ("reward", fresh.reward.len(), len),
            ("discount", fresh.discount.len(), len),
            ("instruction", fresh.instruction.len(), len),
        ] {
            if got != expected {
                return Err(AlgoError::Shape { what, got, expected });
            }
        }
        *self = fresh;
        Ok(())
    }
}

/// Writes row `at` of an array of equal rows, at its end or over an old one.
fn put<T>(array: &mut Vec<T>, at: usize, row: impl Iterator<Item = T>) {
    let row: Vec<T> = row.collect();
    let start = at * row.len();
    if start == array.len() {
        array.extend(row);
    } else {
        for (place, value) in array[start..].iter_mut().zip(row) {
            *place = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn obs(v: f32) -> Observation {
        Observation {
            images: BTreeMap::from([(
                "eye".to_owned(),
                ndarray::Array3::from_elem((2, 2, 3), v as u8).into_shared(),
            )]),
            proprio: vec![v, -v].into(),
            instruction: Arc::from(if v > 2.0 { "late" } else { "early" }),
        }
    }

    fn filled(n: usize) -> Replay {
        let mut replay = Replay::new(4, &["eye".to_owned()]).unwrap();
        for i in 0..n {
            let v = i as f32;
            replay
                .push(&Experience {
                    window: &[obs(v)],
                    action: &[v, v, v],
                    reward: v,
                    discount: 0.5,
                    next: &[obs(v + 1.0)],
                })
                .unwrap();
        }
        replay
    }

    #[test]
    fn what_belongs_together_stays_together_and_the_oldest_makes_room() {
        let replay = filled(6);
        assert_eq!(replay.len(), 4);
        let node = SeedTree::new(0);
        let batch = replay.sample(64, &node, Device::Cpu).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..64 {
            let r = batch.reward.double_value(&[i]);
            seen.insert(r as i64);
            assert_eq!(batch.obs.proprio.double_value(&[i, 0, 1]), -r);
            assert_eq!(batch.next.proprio.double_value(&[i, 0, 0]), r + 1.0);
            assert_eq!(batch.obs.images["eye"].int64_value(&[i, 0, 1, 1, 2]), r as i64);
            assert_eq!(batch.next.images["eye"].int64_value(&[i, 0, 0, 0, 0]), r as i64 + 1);
            let text = if r > 2.0 { "late" } else { "early" };
            assert_eq!(&*batch.obs.instructions[i as usize], text);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [2, 3, 4, 5]);
    }

    #[test]
    fn a_reloaded_buffer_is_the_same_and_goes_on_in_the_same_place() {
        let mut old = filled(5);
        let mut new = Replay::new(4, &["eye".to_owned()]).unwrap();
        new.load_state(&old.state()).unwrap();
        assert_eq!(old, new);
        for replay in [&mut old, &mut new] {
            let one = Experience {
                window: &[obs(9.0)],
                action: &[0.0; 3],
                reward: 9.0,
                discount: 0.0,
                next: &[obs(9.0)],
            };
            replay.push(&one).unwrap();
        }
        assert_eq!(old, new);
        let mut other = Replay::new(5, &["eye".to_owned()]).unwrap();
        assert!(other.load_state(&old.state()).is_err());
    }

    #[test]
    fn numbers_that_are_none_and_other_shapes_are_refused() {
        let mut replay = filled(2);
        let before = replay.clone();
        let (window, next) = ([obs(0.0)], [obs(0.0)]);
        let bad = Experience {
            window: &window,
            action: &[0.0; 3],
            reward: f32::NAN,
            discount: 0.0,
            next: &next,
        };
        assert!(matches!(replay.push(&bad), Err(AlgoError::NotFinite { what: "reward" })));
        let bad = Experience { action: &[0.0; 2], reward: 0.0, ..bad };
        assert!(matches!(replay.push(&bad), Err(AlgoError::Shape { what: "action", .. })));
        assert_eq!(replay, before);
        assert!(Replay::new(4, &[]).unwrap().sample(1, &SeedTree::new(0), Device::Cpu).is_err());
    }
}
