//! How good a model is on episodes that it does not learn from: its loss, and its predictions beside what was done.

use std::sync::Arc;

use simloop_algos::bc::Metrics;
use simloop_algos::loss::masked_sum;
use simloop_algos::{ActionError, AlgoError};
use simloop_envs::SeedTree;
use simloop_policies::{ActMode, ImitationModel, NoiseStream};
use tch::{Device, Kind, Tensor};

use crate::TrainerError;
use crate::data::Dataset;
use crate::observer::Example;
use crate::tensors::to_tensors;

/// Measures on the same windows with the same noise every time, so that two measurements differ by the weights alone.
pub struct Validation {
    data: Arc<dyn Dataset>,
    seeds: SeedTree,
    names: Vec<String>,
    absolute: Vec<bool>,
    batch_size: usize,
    loss_windows: usize,
    predict_windows: usize,
    examples: usize,
}

impl Validation {
    /// On `data`, whose actions are called `names` and are places where `absolute`.
    pub fn new(data: Arc<dyn Dataset>, names: Vec<String>, absolute: Vec<bool>, seed: u64) -> Self {
        Self {
            data,
            seeds: SeedTree::new(seed).child("validate"),
            names,
            absolute,
            batch_size: 256,
            loss_windows: 1024,
            predict_windows: 128,
            examples: 6,
        }
    }

    /// How much to measure: windows per batch, windows of the loss, of predictions, and predictions to keep.
    #[must_use]
    pub fn sizes(mut self, batch: usize, loss: usize, predict: usize, examples: usize) -> Self {
        self.batch_size = batch.max(1);
        (self.loss_windows, self.predict_windows, self.examples) = (loss, predict, examples);
        self
    }

    /// `val/…` and some predictions.
    ///
    /// # Errors
    /// [`TrainerError::Data`], [`TrainerError::Policy`], [`TrainerError::Algo`].
    pub fn measure<M: ImitationModel>(
        &self,
        model: &M,
    ) -> Result<(Metrics, Vec<Example>), TrainerError> {
        let _guard = tch::no_grad_guard();
        let device = model.params().device();
        let mut metrics = Metrics::new();
        if let Some(loss) = self.loss(model, device)? {
            metrics.insert("val/loss", loss);
        }
        let mut error = ActionError::new(&self.absolute);
        let mut examples = Vec::new();
        let chosen = self.spread(self.predict_windows);
        let every = chosen.len().div_ceil(self.examples.max(1)).max(1);
        for (number, indices) in chosen.chunks(self.batch_size).enumerate() {
            let batch = to_tensors(&self.data.batch(indices)?, device)?;
            let node = self.seeds.child("predict");
            let mut noise: Vec<NoiseStream> =
                indices.iter().map(|&i| NoiseStream::new(node.index(i as u64).seed())).collect();
            let predicted = model.predict(&batch.obs, &mut noise, ActMode::Deterministic)?;
            error.add(&predicted, &batch.actions, &batch.valid)?;
            for (row, &index) in indices.iter().enumerate() {
                let place = number * self.batch_size + row;
                if place.is_multiple_of(every) && examples.len() < self.examples {
                    let [predicted, demonstrated] =
                        [&predicted, &batch.actions].map(|t| rows(&t.get(row as i64)));
                    examples.push(self.example(index, predicted?, demonstrated?)?);
                }
            }
        }
        metrics.extend(error.finish());
        Ok((metrics, examples))
    }

    /// The mean loss over all real actions; `None` without windows.
    fn loss<M: ImitationModel>(
        &self,
        model: &M,
        device: Device,
    ) -> Result<Option<f64>, TrainerError> {
        let (mut sum, mut count) = (0.0, 0.0);
        let node = self.seeds.child("loss");
        for (i, indices) in self.spread(self.loss_windows).chunks(self.batch_size).enumerate() {
            let batch = to_tensors(&self.data.batch(indices)?, device)?;
            let mut noise = NoiseStream::new(node.index(i as u64).seed());
            let loss = model.imitation_loss(&batch, &mut noise)?;
            let (part, valid) = masked_sum(&loss, &batch.valid)?;
            sum += part.double_value(&[]);
            count += valid.double_value(&[]);
        }
        Ok((count > 0.0).then(|| sum / count))
    }

    /// At most `count` windows, evenly spread.
    fn spread(&self, count: usize) -> Vec<usize> {
        let n = self.data.len();
        let count = count.min(n);
        (0..count).map(|i| i * n / count).collect()
    }

    fn example(
        &self,
        index: usize,
        predicted: Vec<Vec<f32>>,
        demonstrated: Vec<Vec<f32>>,
    ) -> Result<Example, TrainerError> {
        let sample = self.data.get(index)?;
        let instruction = sample.obs.last().map_or_else(String::new, |o| o.instruction.to_string());
        Ok(Example {
            instruction,
            episode: sample.episode,
            step: sample.step,
            names: self.names.clone(),
            predicted,
            demonstrated,
            valid: sample.valid.iter().filter(|v| **v).count(),
        })
    }
}

/// `[T, D]` as rows.
fn rows(chunk: &Tensor) -> Result<Vec<Vec<f32>>, TrainerError> {
    let chunk = chunk.to_kind(Kind::Float).to_device(Device::Cpu);
    Vec::<Vec<f32>>::try_from(&chunk).map_err(|_| {
        let (what, got, expected) = ("a predicted chunk", chunk.size(), vec![-1, -1]);
        AlgoError::TensorShape { what, got, expected }.into()
    })
}
