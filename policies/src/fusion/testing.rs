//! What every fusion must do, asked of each in its own tests.

use tch::{Device, Kind, Tensor};

use super::{FusionConfig, Modality};
use crate::nn::{Linear, Params, TransformerConfig};
use crate::testing::{Adam, assert_gradient_everywhere, assert_rows_alone, random};

/// Two steps of four image tokens, four words, one state token.
pub(crate) fn modalities() -> [Modality; 3] {
    [
        Modality { tokens: 8, width: 6, steps: 2 },
        Modality { tokens: 4, width: 5, steps: 1 },
        Modality { tokens: 1, width: 3, steps: 1 },
    ]
}

/// Random tokens for [`modalities`].
pub(crate) fn inputs(batch: i64) -> Vec<Tensor> {
    let each = modalities().into_iter().enumerate();
    each.map(|(i, m)| random(i as u64, &[batch, m.tokens, m.width])).collect()
}

/// A transformer of width 16.
pub(crate) fn small() -> TransformerConfig {
    TransformerConfig { width: 16, heads: 2, feed_forward: 32, ..TransformerConfig::default() }
}

/// Shapes (`tokens` out), a gradient for every parameter, rows that do not depend on their batch, every modality and every
/// token heard, errors for shapes that do not fit.
pub(crate) fn check_fusion(config: &FusionConfig, tokens: i64) {
    let text = serde_json::to_string(config).unwrap();
    assert_eq!(&serde_json::from_str::<FusionConfig>(&text).unwrap(), config, "{text}");
    let typo = text.replacen('{', "{\"no_such_setting\":1,", 1);
    let error = serde_json::from_str::<FusionConfig>(&typo).unwrap_err().to_string();
    assert!(error.contains("no_such_setting"), "{error}");

    let params = Params::new(Device::Cpu, 0);
    let fusion = config.build(&params.root(), &modalities()).unwrap();
    let (c, w) = (fusion.pooled_width(), fusion.token_width());
    let inputs: Vec<Tensor> = inputs(4).into_iter().map(|x| x.set_requires_grad(true)).collect();
    let context = fusion.fuse(&inputs).unwrap();
    assert_eq!(context.pooled.size(), [4, c]);
    assert_eq!(context.tokens.size(), [4, tokens, w]);
    let pooled = (&context.pooled * random(20, &[4, c])).sum(Kind::Float);
    let loss = &pooled + (&context.tokens * random(21, &[4, tokens, w])).sum(Kind::Float);
    if !params.names().is_empty() {
        assert_gradient_everywhere(&params, &loss);
        for x in &inputs {
            let _ = x.grad().zero_();
        }
    }
    fusion
        .fuse(&inputs)
        .map(|context| (context.pooled * random(20, &[4, c])).sum(Kind::Float).backward())
        .unwrap();
    for (i, x) in inputs.iter().enumerate() {
        let heard = x.grad().abs().amax([0i64, 2].as_slice(), false);
        assert!(
            heard.min().double_value(&[]) > 0.0,
            "the pooled vector does not hear modality {i}"
        );
    }
    let rows = assert_rows_alone(4, |rows| {
        let some: Vec<Tensor> = inputs.iter().map(|x| x.detach().index_select(0, rows)).collect();
        let context = fusion.fuse(&some).unwrap();
        Tensor::cat(&[context.pooled, context.tokens.flatten(1, 2)], 1).detach()
    });
    assert_ne!(rows.get(0), rows.get(1));

    assert!(fusion.fuse(&inputs[..2]).is_err());
    let mut wrong: Vec<Tensor> = inputs.iter().map(Tensor::shallow_clone).collect();
    wrong[1] = random(0, &[3, 4, 5]);
    let error = fusion.fuse(&wrong).unwrap_err().to_string();
    assert!(error.contains("modality 1"), "{error}");
    assert!(config.build(&params.root().sub("other"), &[]).is_err());
}

/// The sign of a product of a word's and the state's number: no modality alone tells it. A linear layer on the pooled
/// vector learns it.
pub(crate) fn check_learns_from_two_modalities(config: &FusionConfig) {
    let params = Params::new(Device::Cpu, 0);
    let fusion = config.build(&params.root().sub("f"), &modalities()).unwrap();
    let out = Linear::new(&params.root().sub("out"), fusion.pooled_width(), 1);
    let inputs = inputs(128);
    let word = inputs[1].select(1, 2).select(1, 0).sign();
    let state = inputs[2].select(1, 0).select(1, 1).sign();
    let target = (word * state + 1.0) / 2.0;
    let logits = || out.forward(&fusion.fuse(&inputs).unwrap().pooled).squeeze_dim(1);
    let mut adam = Adam::new(1e-2);
    for _ in 0..150 {
        let loss = logits().binary_cross_entropy_with_logits::<Tensor>(
            &target,
            None,
            None,
            tch::Reduction::Mean,
        );
        adam.minimise(&params, &loss);
    }
    let right = logits().gt(0.0).eq_tensor(&target.gt(0.5)).to_kind(Kind::Float).mean(None);
    assert!(right.double_value(&[]) > 0.9, "{right:?} of the signs are right");
}
