//! What every head must do, asked of each in its own tests.

use tch::{Device, Kind, Tensor};

use super::{HeadConfig, HeadShape};
use crate::fusion::Context;
use crate::nn::Params;
use crate::testing::{Adam, assert_gradient_everywhere, assert_rows_alone, random};
use crate::{ActMode, NoiseStream};

/// `C` = 6, `W` = 5, `T_p` = 4, `D` = 2.
pub(crate) fn shape() -> HeadShape {
    HeadShape { pooled_width: 6, token_width: 5, chunk_size: 4, action_dim: 2 }
}

/// A random context of `batch` rows with three tokens each.
pub(crate) fn context(batch: i64) -> Context {
    Context { pooled: random(11, &[batch, 6]), tokens: random(12, &[batch, 3, 5]) }
}

/// Actions in [-0.9, 0.9] that depend linearly on the pooled context; only the first token repeats it.
pub(crate) fn linear_policy(context: &Context) -> Tensor {
    let weight = random(13, &[6, 8]) * 0.3;
    context.pooled.matmul(&weight).clamp(-0.9, 0.9).reshape([-1, 4, 2])
}

fn rows_of(context: &Context, rows: &Tensor) -> Context {
    Context {
        pooled: context.pooled.index_select(0, rows),
        tokens: context.tokens.index_select(0, rows),
    }
}

fn streams_of(rows: &Tensor) -> Vec<NoiseStream> {
    let rows = Vec::<i64>::try_from(rows).unwrap();
    rows.iter().map(|r| NoiseStream::new(100 + *r as u64)).collect()
}

/// Shapes, finite numbers, a gradient for every parameter, rows that do not depend on their batch, no gradient in
/// samples, and errors for shapes that do not fit.
pub(crate) fn check_head(config: &HeadConfig) {
    let text = serde_json::to_string(config).unwrap();
    assert_eq!(&serde_json::from_str::<HeadConfig>(&text).unwrap(), config, "{text}");
    let typo = text.replacen('{', "{\"no_such_setting\":1,", 1);
    let error = serde_json::from_str::<HeadConfig>(&typo).unwrap_err().to_string();
    assert!(error.contains("no_such_setting"), "{error}");

    let params = Params::new(Device::Cpu, 3);
    let head = config.build(&params.root(), shape()).unwrap();
    let context = context(5);
    let actions = random(14, &[5, 4, 2]).clamp(-1.0, 1.0);
    let valid = Tensor::ones([5, 4], (Kind::Float, Device::Cpu));
    let _ = valid.get(4).narrow(0, 2, 2).fill_(0.0);
    let loss = head.loss(&context, &actions, &valid, &mut NoiseStream::new(0)).unwrap();
    assert_eq!(loss.size(), [5, 4]);
    let again = head.loss(&context, &actions, &valid, &mut NoiseStream::new(0)).unwrap();
    assert_eq!(loss, again);
    assert_gradient_everywhere(&params, &loss.mean(None));

    for mode in [ActMode::Deterministic, ActMode::Stochastic] {
        let chunks = assert_rows_alone(5, |rows| {
            let chunk = head.sample(&rows_of(&context, rows), &mut streams_of(rows), mode).unwrap();
            assert_eq!(chunk.size(), [rows.size()[0], 4, 2]);
            assert!(!chunk.requires_grad());
            assert_eq!(chunk.isfinite().all().int64_value(&[]), 1);
            chunk
        });
        // The likeliest text of an untrained model may be the same for all.
        if mode == ActMode::Stochastic || !matches!(config, HeadConfig::Text(_)) {
            assert_ne!(chunks.get(0), chunks.get(1), "different contexts, one chunk");
        }
    }

    let all = Tensor::from_slice(&[0i64, 1, 2, 3, 4]);
    let too_few = &mut streams_of(&all)[..4];
    assert!(head.sample(&context, too_few, ActMode::Deterministic).is_err());
    let wrong = actions.narrow(1, 0, 3);
    assert!(head.loss(&context, &wrong, &valid, &mut NoiseStream::new(0)).is_err());
    let wrong = Context { pooled: random(0, &[5, 7]), tokens: random(0, &[5, 3, 5]) };
    assert!(head.loss(&wrong, &actions, &valid, &mut NoiseStream::new(0)).is_err());
    assert!(
        config.build(&params.root().sub("other"), HeadShape { chunk_size: 0, ..shape() }).is_err()
    );
}

/// After `steps` of Adam the deterministic chunk is within `tolerance` (mean absolute) of a linear policy; before, it was
/// not.
pub(crate) fn check_learns_a_linear_policy(
    config: &HeadConfig,
    steps: usize,
    lr: f64,
    tolerance: f64,
) {
    let params = Params::new(Device::Cpu, 3);
    let head = config.build(&params.root(), shape()).unwrap();
    let context = context(64);
    let actions = linear_policy(&context);
    let valid = Tensor::ones([64, 4], (Kind::Float, Device::Cpu));
    let error = || {
        let mut streams: Vec<NoiseStream> = (0..64).map(NoiseStream::new).collect();
        let chunk = head.sample(&context, &mut streams, ActMode::Deterministic).unwrap();
        (chunk - &actions).abs().mean(None).double_value(&[])
    };
    let before = error();
    let mut adam = Adam::new(lr);
    let mut noise = NoiseStream::new(1);
    for _ in 0..steps {
        let loss = head.loss(&context, &actions, &valid, &mut noise).unwrap();
        adam.minimise(&params, &loss.mean(None));
    }
    let after = error();
    assert!(before > 3.0 * tolerance && after < tolerance, "error {before} -> {after}");
}
