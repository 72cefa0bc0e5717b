//! Forward passes, gradients and sampling.

use std::path::Path;

use simloop_policies::nn::{
    NoiseSchedule, NoiseScheduleConfig, Params, Prediction, Unet1d, Unet1dConfig,
};
use simloop_policies::text::Qwen2;
use simloop_policies::text::qwen2::IGNORE;
use simloop_policies::vision::SiglipVision;
use simloop_policies::{PolicyError, hf};
use tch::{Device, Tensor};

use super::{Recorded, Row};

/// Groups of the U-Net's norms where no `config.json` says so (the reference's default).
const N_GROUPS: i64 = 8;

pub(super) fn siglip(folder: &Path) -> Result<Vec<Row>, PolicyError> {
    let tower = SiglipVision::load(folder, Device::Cpu)?;
    let io = Recorded::read(folder)?;
    let _guard = tch::no_grad_guard();
    let output = tower.forward(io.need("pixel_values")?)?;
    let mut rows = Vec::new();
    if let Some(theirs) = io.get("last_hidden_state") {
        rows.push(Row::numbers("last_hidden_state", &output.last_hidden_state, theirs)?);
    }
    if let (Some(theirs), Some(ours)) = (io.get("pooler_output"), &output.pooler_output) {
        rows.push(Row::numbers("pooler_output", ours, theirs)?);
    }
    Ok(rows)
}

/// The recorded batch: tokens, mask, labels. Labels that were not recorded are the tokens without padding.
pub(super) struct TextBatch {
    pub(super) ids: Tensor,
    pub(super) mask: Tensor,
    pub(super) labels: Tensor,
}

impl TextBatch {
    pub(super) fn of(io: &Recorded) -> Result<Self, PolicyError> {
        let ids = io.need("input_ids")?.shallow_clone();
        let mask = io.get("attention_mask").map_or_else(|| ids.ones_like(), Tensor::shallow_clone);
        if mask.size() != ids.size() {
            return Err(PolicyError::Config {
                detail: format!(
                    "the recorded mask {:?} does not fit tokens {:?}",
                    mask.size(),
                    ids.size()
                ),
            });
        }
        let labels = io
            .get("labels")
            .map_or_else(|| ids.masked_fill(&mask.eq(0), IGNORE), Tensor::shallow_clone);
        Ok(Self { ids, mask, labels })
    }

    pub(super) fn hidden(&self, model: &Qwen2) -> Result<Tensor, PolicyError> {
        model.hidden(&self.ids, Some(&self.mask), true)
    }
}

pub(super) fn decoder(folder: &Path) -> Result<Vec<Row>, PolicyError> {
    let model = Qwen2::load(folder, Device::Cpu, None)?;
    let io = Recorded::read(folder)?;
    let batch = TextBatch::of(&io)?;
    let hidden = batch.hidden(&model)?;
    let logits = model.logits(&hidden);
    let mut rows = Vec::new();
    for (name, ours) in [("hidden", &hidden), ("logits", &logits)] {
        if let Some(theirs) = io.get(name) {
            rows.push(Row::numbers(name, ours, theirs)?);
        }
    }
    if let Some(theirs) = io.get("loss") {
        let loss = Qwen2::loss(&logits, &batch.labels);
        rows.push(Row::numbers("loss", &loss.reshape(theirs.size()), theirs)?);
        model.params().backward(&loss);
        rows.extend(gradients(model.params(), &io, "grad.")?);
    }
    if let Some(theirs) = io.get("generated") {
        rows.push(generated(&model, &batch, theirs)?);
    }
    Ok(rows)
}

/// One row per recorded gradient.
pub(super) fn gradients(
    params: &Params,
    io: &Recorded,
    prefix: &str,
) -> Result<Vec<Row>, PolicyError> {
    io.below(prefix)
        .map(|(name, theirs)| {
            let grad = params.get(name).map(|tensor| tensor.grad()).filter(Tensor::defined);
            let grad = grad.ok_or_else(|| PolicyError::Config {
                detail: format!(
                    "compare the gradient of `{name}`: the model has no such parameter that learns"
                ),
            })?;
            Row::numbers(&format!("gradient {name}"), &grad, theirs)
        })
        .collect()
}

/// Greedy tokens after the first recorded rows.
fn generated(model: &Qwen2, batch: &TextBatch, theirs: &Tensor) -> Result<Row, PolicyError> {
    let (size, prompt) = (theirs.size(), batch.ids.size());
    if size.len() != 2 || size[0] > prompt[0] || size[1] < prompt[1] {
        return Err(PolicyError::Config {
            detail: format!("`generated` {size:?} does not continue the tokens {prompt:?}"),
        });
    }
    let rows = |t: &Tensor| t.narrow(0, 0, size[0]);
    let new = size[1] - prompt[1];
    let ours =
        model.greedy(&rows(&batch.ids), Some(&rows(&batch.mask)), new, |logits, _| logits)?;
    Row::integers(&format!("generated, {new} greedy tokens"), &ours, theirs)
}

pub(super) fn diffusion(folder: &Path) -> Result<Vec<Row>, PolicyError> {
    let path = folder.join("config.json");
    let config: serde_json::Value =
        if path.exists() { hf::read_json(&path)? } else { serde_json::Value::Null };
    let groups = config.get("n_groups").and_then(serde_json::Value::as_i64).unwrap_or(N_GROUPS);
    let (_, weights) = hf::below_marker(
        &hf::read_weights(folder)?,
        "diffusion_step_encoder.1.weight",
    )
    .map(|(prefix, weights)| {
        let known =
            ["diffusion_step_encoder", "down_modules", "mid_modules", "up_modules", "final_conv"];
        let keep = |name: &str| known.contains(&name.split('.').next().unwrap_or_default());
        (prefix, weights.into_iter().filter(|(name, _)| keep(name)).collect())
    })?;
    let shape = Unet1dConfig::infer(&weights, groups)?;
    let params = Params::from_values(Device::Cpu, 0, weights);
    let net = Unet1d::new(&params.root(), shape)?;
    params.complete()?;

    let io = Recorded::read(folder)?;
    let _guard = tch::no_grad_guard();
    let (x, cond) = (io.need("x")?, io.need("c")?);
    let mut rows = Vec::new();
    if let Some(theirs) = io.get("out") {
        rows.push(Row::numbers("forward", &net.forward(x, io.need("t")?, cond)?, theirs)?);
    }
    let defaults = NoiseScheduleConfig::default();
    let schedule = NoiseScheduleConfig {
        train_steps: io.get("alphas_cumprod").map_or(defaults.train_steps, |t| t.numel() as i64),
        prediction: match config.get("prediction_type").and_then(|v| v.as_str()) {
            Some("sample") => Prediction::Sample,
            _ => defaults.prediction,
        },
        clip_sample: config
            .get("clip_sample")
            .and_then(serde_json::Value::as_bool)
            .unwrap_or(defaults.clip_sample),
    };
    let schedule = NoiseSchedule::new(schedule, Device::Cpu)?;
    if let Some(theirs) = io.get("alphas_cumprod") {
        let ours = Tensor::from_slice(schedule.alphas_cumprod());
        rows.push(Row::numbers("alphas_cumprod", &ours, theirs)?);
    }
    if let Some(theirs) = io.get("noisy") {
        // Recorded with noise of ones.
        let ours = schedule.add_noise(x, &x.ones_like(), io.need("t")?);
        rows.push(Row::numbers("add_noise", &ours, theirs)?);
    }
    let network = |sample: &Tensor, steps: &Tensor| net.forward(sample, steps, cond);
    for (n, theirs) in io.below("ddim").filter_map(|(n, t)| Some((n.parse::<i64>().ok()?, t))) {
        if let Some(steps) = io.get(&format!("ddim{n}.t")) {
            let ours = Tensor::from_slice(&schedule.sampling_steps(n)?);
            rows.push(Row::integers(&format!("DDIM, {n} steps: which"), &ours, steps)?);
        }
        rows.push(Row::numbers(
            &format!("DDIM, {n} steps"),
            &schedule.ddim(x, n, network)?,
            theirs,
        )?);
    }
    if let Some(theirs) = io.get("ddpm") {
        let noise = io.need("ddpm.z")?;
        let n = noise.size().first().map_or(0, |n| n + 1);
        let mut step = 0;
        let fresh = || {
            step += 1;
            noise.get((step - 1).min(noise.size()[0] - 1))
        };
        let ours = schedule.ddpm(x, n, fresh, network)?;
        rows.push(Row::numbers(&format!("DDPM, {n} steps, recorded noise"), &ours, theirs)?);
    }
    Ok(rows)
}
