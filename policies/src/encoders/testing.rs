//! What every image encoder must do, asked of each in its own tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{Camera, Encoder, Inputs, VisionConfig};
use crate::nn::{Linear, Params};
use crate::testing::{Adam, assert_close, assert_gradient_everywhere, assert_rows_alone, random};

const STEPS: i64 = 2;

fn cameras(size: i64) -> Vec<Camera> {
    let camera = |name: &str| Camera { name: name.to_owned(), height: size, width: size };
    vec![camera("top"), camera("wrist")]
}

fn encode(encoder: &dyn Encoder, images: &BTreeMap<String, Tensor>) -> Tensor {
    let b = images.values().next().unwrap().size()[0];
    let proprio = Tensor::zeros([b, STEPS, 1], (Kind::Float, Device::Cpu));
    let instructions: Vec<Arc<str>> = vec![Arc::from(""); b as usize];
    encoder.encode(&Inputs { images, proprio: &proprio, instructions: &instructions }).unwrap()
}

/// Shapes, token order, a gradient for every parameter, rows that do not depend on their batch, shared and own weights,
/// and errors that name the camera. `tokens` and `width` are per image of `size` px.
pub(crate) fn check_vision(config: &VisionConfig, size: i64, tokens: i64, width: i64) {
    let text = serde_json::to_string(config).unwrap();
    assert_eq!(&serde_json::from_str::<VisionConfig>(&text).unwrap(), config, "{text}");
    let shared: VisionConfig =
        serde_json::from_str(&text.replace("\"share_weights\":false", "\"share_weights\":true"))
            .unwrap();
    assert_ne!(&shared, config);

    let params = Params::new(Device::Cpu, 0);
    let encoder = config.build(&params.root(), &cameras(size), STEPS).unwrap().unwrap();
    let pixels = |seed| random(seed, &[4, STEPS, 3, size, size]) * 0.2 + 0.5;
    let images = BTreeMap::from([("top".to_owned(), pixels(1)), ("wrist".to_owned(), pixels(2))]);
    let n = STEPS * 2 * tokens;
    assert_eq!((encoder.tokens(), encoder.width(), encoder.steps()), (n, width, STEPS));
    let y = encode(&*encoder, &images);
    assert_eq!(y.size(), [4, n, width]);
    assert_gradient_everywhere(&params, &(&y * random(3, &[4, n, width])).sum(Kind::Float));
    let rows = assert_rows_alone(4, |rows| {
        let some = images.iter().map(|(k, v)| (k.clone(), v.index_select(0, rows))).collect();
        encode(&*encoder, &some).detach()
    });
    assert_ne!(rows.get(0), rows.get(1));

    // Time comes first: another last frame of the second camera changes the last tokens only.
    let mut other = images.iter().map(|(k, v)| (k.clone(), v.copy())).collect::<BTreeMap<_, _>>();
    let _ = other["wrist"].select(1, STEPS - 1).fill_(0.25);
    let z = encode(&*encoder, &other);
    assert_close(&z.narrow(1, 0, n - tokens), &y.narrow(1, 0, n - tokens), 1e-6);
    assert_ne!(z.narrow(1, n - tokens, tokens), y.narrow(1, n - tokens, tokens));

    let shared_params = Params::new(Device::Cpu, 0);
    let shared = shared.build(&shared_params.root(), &cameras(size), STEPS).unwrap().unwrap();
    assert_eq!(2 * shared_params.count().0, params.count().0);
    let twice = BTreeMap::from([("top".to_owned(), pixels(1)), ("wrist".to_owned(), pixels(1))]);
    let y = encode(&*shared, &twice).reshape([4, STEPS, 2, tokens, width]);
    assert_close(&y.select(2, 0), &y.select(2, 1), 1e-6);

    other.remove("wrist");
    let proprio = Tensor::zeros([4, STEPS, 1], (Kind::Float, Device::Cpu));
    let refusal = |images: &BTreeMap<String, Tensor>| {
        let inputs = Inputs { images, proprio: &proprio, instructions: &[] };
        encoder.encode(&inputs).unwrap_err().to_string()
    };
    let error = refusal(&other);
    assert!(error.contains("images[wrist]"), "{error}");
    other.insert("wrist".to_owned(), random(0, &[4, STEPS, 3, size, size + 1]));
    let error = refusal(&other);
    assert!(error.contains("images[wrist]") && error.contains(&(size + 1).to_string()), "{error}");
}

/// A linear layer on the first token learns the position of a white dot on black, in `[-1, 1]`, to 0.15.
pub(crate) fn check_finds_a_dot(config: &VisionConfig) {
    const SIZE: i64 = 16;
    let params = Params::new(Device::Cpu, 0);
    let camera = Camera { name: "top".to_owned(), height: SIZE, width: SIZE };
    let encoder = config.build(&params.root().sub("e"), &[camera], 1).unwrap().unwrap();
    let out = Linear::new(&params.root().sub("out"), encoder.width(), 2);
    let mut targets = Vec::new();
    let frames = Tensor::zeros([36, 1, 3, SIZE, SIZE], (Kind::Float, Device::Cpu));
    for i in 0..36i64 {
        let (row, column) = (1 + 2 * (i / 6), 1 + 2 * (i % 6));
        let _ = frames.get(i).narrow(2, row, 3).narrow(3, column, 3).fill_(1.0);
        targets.extend([(column as f32 - 6.0) / 6.0, (row as f32 - 6.0) / 6.0]);
    }
    let targets = Tensor::from_slice(&targets).reshape([36, 2]);
    let images = BTreeMap::from([("top".to_owned(), frames)]);
    let instructions: Vec<Arc<str>> = vec![Arc::from(""); 36];
    let proprio = Tensor::zeros([36, 1, 1], (Kind::Float, Device::Cpu));
    let inputs = Inputs { images: &images, proprio: &proprio, instructions: &instructions };
    let error = || {
        let token = encoder.encode(&inputs).unwrap().select(1, 0);
        out.forward(&token) - &targets
    };
    let before = error().abs().mean(None).double_value(&[]);
    let mut adam = Adam::new(5e-3);
    for _ in 0..150 {
        adam.minimise(&params, &error().square().mean(None));
    }
    let after = error().abs().mean(None).double_value(&[]);
    assert!(before > 0.3 && after < 0.15, "error {before} -> {after}");
}
