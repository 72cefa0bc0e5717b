//! Which entry of a message is which part of an observation.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{ArcArray1, Array3};
use serde::{Deserialize, Serialize};
use simloop_envs::{ImageSpace, Observation};
use thiserror::Error;

use super::node::{Array, Dtype, Node, WireError};

/// The longest instruction that is read, bytes.
const MAX_PROMPT: usize = 4096;

/// An observation that cannot be read, and which entry is to blame.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{field}`: {detail}")]
pub struct KeysError {
    /// The entry.
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}

impl KeysError {
    fn new(field: &str, detail: impl Into<String>) -> Self {
        Self { field: field.to_owned(), detail: detail.into() }
    }
}

/// Where the image of one camera is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CameraKey {
    /// The camera.
    pub camera: String,
    /// Its entry; more names are accepted in this order.
    pub names: Vec<String>,
}

/// Names of the parts of an observation. Of each list the first is written, all are read; `/` leads into nested maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// The instruction.
    pub prompt: Vec<String>,
    /// `proprio`: names joined by `+` are parts of it, one after the other.
    pub state: Vec<String>,
    /// The cameras.
    pub cameras: Vec<CameraKey>,
}

/// Whether a camera sits on the hand, by its name: `robot0_eye_in_hand`, `wrist`, …
fn on_the_hand(camera: &str) -> bool {
    camera.contains("hand") || camera.contains("wrist")
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

impl Keys {
    /// The names of openpi's LIBERO policies (`examples/libero/main.py`: `observation/image`, `observation/wrist_image`,
    /// `observation/state`, `prompt`); OpenVLA's, OpenVLA-OFT's and LeRobot's are read too.
    pub fn openpi<'c>(cameras: impl IntoIterator<Item = &'c str>) -> Self {
        Self::with(
            cameras,
            &["prompt", "instruction", "task"],
            &["observation/state", "state", "proprio", "observation.state"],
            &["observation/image", "full_image", "image"],
            &["observation/wrist_image", "wrist_image"],
        )
    }

    /// The names of OpenVLA's REST form (`vla-scripts/deploy.py`: `image`, `instruction`) and of OpenVLA-OFT's (`state`,
    /// `wrist_image`); openpi's and LeRobot's are read too.
    pub fn openvla<'c>(cameras: impl IntoIterator<Item = &'c str>) -> Self {
        Self::with(
            cameras,
            &["instruction", "prompt", "task"],
            &["state", "proprio", "observation/state", "observation.state"],
            &["image", "full_image", "observation/image"],
            &["wrist_image", "observation/wrist_image"],
        )
    }

    fn with<'c>(
        cameras: impl IntoIterator<Item = &'c str>,
        prompt: &[&str],
        state: &[&str],
        scene: &[&str],
        hand: &[&str],
    ) -> Self {
        let (mut scene_taken, mut hand_taken) = (false, false);
        let cameras: Vec<&str> = cameras.into_iter().collect();
        // A lone camera is the picture, wherever it sits.
        let lone = cameras.len() == 1;
        let cameras = cameras
            .into_iter()
            .map(|camera| {
                let is_hand = on_the_hand(camera) && !lone;
                let (taken, common) =
                    if is_hand { (&mut hand_taken, hand) } else { (&mut scene_taken, scene) };
                let mut names = if *taken { Vec::new() } else { owned(common) };
                *taken = true;
                names.push(format!("observation/{camera}"));
                names.push(format!("observation.images.{camera}"));
                names.push(format!("images/{camera}"));
                names.push(camera.to_owned());
                CameraKey { camera: camera.to_owned(), names }
            })
            .collect();
        Self { prompt: owned(prompt), state: owned(state), cameras }
    }

    /// Applies `part=name` settings: `prompt=…`, `state=a+b`, `image.CAMERA=…`. A part that is set has that name alone.
    ///
    /// # Errors
    /// [`KeysError`] for a part that does not exist.
    pub fn set(&mut self, settings: &[(String, String)]) -> Result<(), KeysError> {
        for (part, name) in settings {
            if name.is_empty() {
                return Err(KeysError::new(part, "an empty name"));
            }
            match part.as_str() {
                "prompt" => self.prompt = vec![name.clone()],
                "state" => self.state = vec![name.clone()],
                _ => {
                    let camera = part.strip_prefix("image.").and_then(|wanted| {
                        self.cameras.iter_mut().find(|key| key.camera == wanted)
                    });
                    let Some(camera) = camera else {
                        let known: Vec<String> = self
                            .cameras
                            .iter()
                            .map(|key| format!("image.{}", key.camera))
                            .collect();
                        return Err(KeysError::new(
                            part,
                            format!("the parts are prompt, state {}", known.join(" ")),
                        ));
                    };
                    camera.names = vec![name.clone()];
                }
            }
        }
        Ok(())
    }

    /// An observation as a message; images and numbers are borrowed where they can be. `parts` are the lengths of
    /// the state's parts where it has several names.
    ///
    /// # Errors
    /// [`KeysError`] for a camera that the observation lacks or a state in several parts.
    pub fn message<'a>(&'a self, obs: &'a Observation) -> Result<Node<'a>, KeysError> {
        let wire = |field: &str| {
            let field = field.to_owned();
            move |e: WireError| KeysError { field, detail: e.0 }
        };
        let mut entries = Vec::with_capacity(2 + self.cameras.len());
        for CameraKey { camera, names } in &self.cameras {
            let (Some(frame), Some(name)) = (obs.images.get(camera), names.first()) else {
                return Err(KeysError::new(camera, "the observation has no image of that camera"));
            };
            let data = match frame.as_slice() {
                Some(slice) => std::borrow::Cow::Borrowed(slice),
                None => std::borrow::Cow::Owned(frame.iter().copied().collect()),
            };
            let array = Array::new(Dtype::U8, frame.shape().to_vec(), data).map_err(wire(name))?;
            entries.push((std::borrow::Cow::Borrowed(name.as_str()), Node::Array(array)));
        }
        if let (Some(name), false) = (self.state.first(), obs.proprio.is_empty()) {
            if name.contains('+') {
                return Err(KeysError::new(name, "a state in several parts is read, not written"));
            }
            let array = Array::f32(&[obs.proprio.len()], obs.proprio.iter().copied());
            let array = array.map_err(wire(name))?;
            entries.push((std::borrow::Cow::Borrowed(name.as_str()), Node::Array(array)));
        }
        if let Some(name) = self.prompt.first() {
            let words = Node::Text(std::borrow::Cow::Borrowed(&*obs.instruction));
            entries.push((std::borrow::Cow::Borrowed(name.as_str()), words));
        }
        Ok(Node::Map(entries))
    }
}

/// What an observation must hold.
#[derive(Clone, Debug)]
pub struct Wanted<'w> {
    /// Frame sizes of the cameras that are looked through.
    pub cameras: &'w BTreeMap<String, ImageSpace>,
    /// `P`.
    pub proprio: usize,
    /// Whether there must be an instruction.
    pub prompt: bool,
}

/// Reads an observation from a message. Shapes and types are checked before a pixel is copied; other entries are passed over.
///
/// # Errors
/// [`KeysError`] naming the entry that is missing or does not fit.
pub fn observation(
    message: &Node<'_>,
    keys: &Keys,
    wanted: &Wanted<'_>,
    inherited: Option<&Arc<str>>,
) -> Result<Observation, KeysError> {
    let mut frames = Vec::with_capacity(keys.cameras.len());
    for CameraKey { camera, names } in &keys.cameras {
        let Some(space) = wanted.cameras.get(camera) else { continue };
        let (name, node) = find(message, names)?;
        frames.push((camera, image(name, node, *space)?, space));
    }
    let proprio =
        if wanted.proprio == 0 { Vec::new() } else { state(message, &keys.state, wanted.proprio)? };
    let prompt = keys.prompt.iter().find_map(|name| Some((name, message.find(name)?)));
    let instruction = match (prompt, inherited) {
        (Some((name, node)), _) => match node.as_str() {
            Some(text) if text.len() <= MAX_PROMPT => Arc::from(text),
            Some(text) => {
                let detail = format!("{} bytes; at most {MAX_PROMPT}", text.len());
                return Err(KeysError::new(name, detail));
            }
            None => {
                return Err(KeysError::new(name, format!("{} where text belongs", node.kind())));
            }
        },
        (None, Some(earlier)) => Arc::clone(earlier),
        (None, None) if wanted.prompt => {
            return Err(KeysError::new(first(&keys.prompt), "this policy reads an instruction"));
        }
        (None, None) => Arc::from(""),
    };
    let mut images = BTreeMap::new();
    for (camera, Pixels { data, planar }, space) in frames {
        let (h, w) = (space.height as usize, space.width as usize);
        let impossible = |e: ndarray::ShapeError| KeysError::new(camera, e.to_string());
        let frame = if planar {
            let planes = Array3::from_shape_vec((3, h, w), data.to_vec()).map_err(impossible)?;
            planes.permuted_axes([1, 2, 0]).as_standard_layout().into_owned()
        } else {
            Array3::from_shape_vec((h, w, 3), data.to_vec()).map_err(impossible)?
        };
        images.insert(camera.clone(), frame.into_shared());
    }
    Ok(Observation { images, proprio: ArcArray1::from(proprio), instruction })
}

fn first(names: &[String]) -> &str {
    names.first().map_or("?", String::as_str)
}

fn find<'m, 'n>(
    message: &'m Node<'m>,
    names: &'n [String],
) -> Result<(&'n str, &'m Node<'m>), KeysError> {
    names.iter().find_map(|name| Some((name.as_str(), message.find(name)?))).ok_or_else(|| {
        KeysError::new(first(names), format!("it is missing; accepted names: {}", names.join(", ")))
    })
}

struct Pixels<'m> {
    data: std::borrow::Cow<'m, [u8]>,
    /// `[3, H, W]`.
    planar: bool,
}

fn image<'m>(name: &str, node: &'m Node<'m>, space: ImageSpace) -> Result<Pixels<'m>, KeysError> {
    let (h, w) = (space.height as usize, space.width as usize);
    let expected = format!("expected [{h}, {w}, 3] of uint8");
    let layout = |shape: &[usize]| match shape {
        [a, b, 3] if (*a, *b) == (h, w) => Some(false),
        [3, a, b] if (*a, *b) == (h, w) => Some(true),
        _ => None,
    };
    let refuse = |what: &str| Err(KeysError::new(name, format!("{what}; {expected}")));
    match node {
        Node::Array(array) => match (array.dtype(), layout(array.shape())) {
            (Dtype::U8, Some(planar)) => {
                Ok(Pixels { data: std::borrow::Cow::Borrowed(array.data()), planar })
            }
            _ => refuse(&node.kind()),
        },
        Node::List(_) => {
            let (shape, values) = match node.numbers() {
                Ok(numbers) => numbers,
                Err(e) => return refuse(&e.0),
            };
            let Some(planar) = layout(&shape) else {
                return refuse(&format!("lists of shape {shape:?}"));
            };
            if values.iter().any(|v| !(0.0..=255.0).contains(v) || v.fract() != 0.0) {
                return refuse("a pixel that is no whole number from 0 to 255");
            }
            let data = values.into_iter().map(|v| v as u8).collect();
            Ok(Pixels { data: std::borrow::Cow::Owned(data), planar })
        }
        other => refuse(&other.kind()),
    }
}

fn state(message: &Node<'_>, names: &[String], expected: usize) -> Result<Vec<f32>, KeysError> {
    // Several parts must be there together.
    let whole = names.iter().find(|name| name.split('+').all(|part| message.find(part).is_some()));
    let Some(name) = whole else {
        return Err(KeysError::new(
            first(names),
            format!("it is missing; accepted names: {}", names.join(", ")),
        ));
    };
    let mut values = Vec::with_capacity(expected);
    for part in name.split('+') {
        let Some(node) = message.find(part) else { continue };
        if let Node::Array(array) = node
            && array.shape().iter().product::<usize>() > expected
        {
            let detail = format!("{}; expected {expected} numbers", node.kind());
            return Err(KeysError::new(part, detail));
        }
        let (shape, numbers) = node.numbers().map_err(|e| KeysError::new(part, e.0))?;
        if shape.len() > 1 {
            let detail = format!("the shape {shape:?}; expected [{expected}]");
            return Err(KeysError::new(part, detail));
        }
        values.extend(numbers);
    }
    if values.len() != expected {
        let detail = format!("{} numbers; expected {expected}", values.len());
        return Err(KeysError::new(name, detail));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;
    use crate::remote::{json, msgpack};

    fn keys() -> Keys {
        Keys::openpi(["agentview", "robot0_eye_in_hand"])
    }

    fn cameras() -> BTreeMap<String, ImageSpace> {
        ["agentview", "robot0_eye_in_hand"]
            .map(|name| (name.to_owned(), ImageSpace { height: 4, width: 5 }))
            .into()
    }

    fn sample() -> Observation {
        let frame = |n: u8| {
            Array3::from_shape_fn((4, 5, 3), |(y, x, c)| n + (y * 15 + x * 3 + c) as u8)
                .into_shared()
        };
        Observation {
            images: [
                ("agentview".to_owned(), frame(0)),
                ("robot0_eye_in_hand".to_owned(), frame(100)),
            ]
            .into(),
            proprio: ArcArray1::from(vec![0.5, -1.25]),
            instruction: "go".into(),
        }
    }

    #[test]
    fn an_observation_survives_either_form() {
        let (obs, cameras) = (sample(), cameras());
        let wanted = Wanted { cameras: &cameras, proprio: 2, prompt: true };
        for keys in [keys(), Keys::openvla(["agentview", "robot0_eye_in_hand"])] {
            let message = keys.message(&obs).unwrap();
            let bytes = msgpack::write(&message);
            let back = observation(&msgpack::read(&bytes).unwrap(), &keys, &wanted, None).unwrap();
            assert_eq!(back, obs);
            let text = json::write(&message).unwrap();
            let back = observation(&json::read(text.as_bytes()).unwrap(), &keys, &wanted, None);
            assert_eq!(back.unwrap(), obs);
        }
    }

    #[test]
    fn the_names_are_those_of_openpi_and_openvla() {
        let written = |keys: &Keys| {
            let obs = sample();
            let Node::Map(entries) = keys.message(&obs).unwrap() else { panic!() };
            entries.into_iter().map(|(key, _)| key.into_owned()).collect::<Vec<_>>()
        };
        let expected =
            ["observation/image", "observation/wrist_image", "observation/state", "prompt"];
        assert_eq!(written(&keys()), expected);
        let openvla = Keys::openvla(["agentview", "robot0_eye_in_hand"]);
        assert_eq!(written(&openvla), ["image", "wrist_image", "state", "instruction"]);
        assert_eq!(Keys::openpi(["wrist"]).cameras[0].names[0], "observation/image");
    }

    #[test]
    fn planar_images_lists_and_nested_maps_are_read() {
        let cameras: BTreeMap<_, _> =
            [("top".to_owned(), ImageSpace { height: 2, width: 2 })].into();
        let wanted = Wanted { cameras: &cameras, proprio: 3, prompt: false };
        let mut keys = Keys::openpi(["top"]);
        keys.set(&[("state".to_owned(), "arm+hand".to_owned())]).unwrap();
        let text = r#"{"images": {"top": [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]},
            "arm": [1, 2], "hand": 3, "extra": null}"#;
        let obs = observation(&json::read(text.as_bytes()).unwrap(), &keys, &wanted, None).unwrap();
        assert_eq!(obs.proprio.to_vec(), [1.0, 2.0, 3.0]);
        let frame = &obs.images["top"];
        assert_eq!(frame.dim(), (2, 2, 3));
        assert_eq!((frame[[0, 1, 0]], frame[[0, 1, 1]], frame[[1, 0, 2]]), (1, 5, 10));
        assert!(frame.as_slice().is_some(), "in the order of its axes");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let cameras = cameras();
        let wanted = Wanted { cameras: &cameras, proprio: 2, prompt: true };
        let good = || {
            let (message, keys) = (sample(), keys());
            msgpack::write(&keys.message(&message).unwrap())
        };
        let with = |name: &str, value: Node<'static>| {
            let bytes = good();
            let Node::Map(mut entries) = msgpack::read(&bytes).unwrap() else { panic!() };
            entries.retain(|(key, _)| key != name);
            entries.push((name.to_owned().into(), value));
            let keys = keys();
            observation(&Node::Map(entries), &keys, &wanted, None).unwrap_err()
        };
        let array = |dtype, shape: &[usize], bytes: usize| {
            Node::Array(Array::new(dtype, shape.to_vec(), vec![0; bytes].into()).unwrap())
        };
        for (field, value, why) in [
            ("observation/image", array(Dtype::U8, &[5, 4, 3], 60), "expected [4, 5, 3]"),
            ("observation/image", array(Dtype::F32, &[4, 5, 3], 240), "float32"),
            ("observation/image", array(Dtype::U8, &[4, 5], 20), "expected"),
            ("observation/wrist_image", Node::Nil, "nothing"),
            ("observation/state", Node::List(vec![Node::Float(1.0)]), "1 numbers; expected 2"),
            ("observation/state", array(Dtype::F32, &[1, 2], 8), "shape [1, 2]"),
            ("observation/state", array(Dtype::F32, &[1000], 4000), "expected 2 numbers"),
            ("observation/state", Node::List(vec![Node::Float(f64::NAN); 2]), "not finite"),
            ("prompt", Node::Int(3), "where text belongs"),
            ("prompt", Node::Text("x".repeat(5000).into()), "5000 bytes"),
        ] {
            let error = with(field, value);
            assert_eq!(error.field, field);
            assert!(error.detail.contains(why), "{error}");
        }
        let nothing = observation(&Node::Map(vec![]), &keys(), &wanted, None).unwrap_err();
        assert!(nothing.detail.contains("observation/image, full_image"), "{nothing}");
        assert!(keys().set(&[("image.top".to_owned(), "x".to_owned())]).is_err());
    }
}
