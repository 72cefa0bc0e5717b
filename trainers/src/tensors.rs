//! Where batches of demonstrations become tensors.

use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, bounded};
use ndarray::{Array, Dimension};
use simloop_policies::{ImitationBatch, ObsBatch};
use tch::{Device, Tensor, kind::Element};

use crate::TrainerError;
use crate::data::{DemoBatch, Loader, LoaderPosition};

/// A loader's batches on a device, in its order. A thread copies one ahead, so that a GPU does not wait for the copy of
/// its next batch: images of 256 windows are 14 MB.
pub struct Feed {
    /// `None` only while it is dropped.
    made: Option<Receiver<Result<(ImitationBatch, LoaderPosition), TrainerError>>>,
    position: LoaderPosition,
    per_epoch: u64,
    thread: Option<JoinHandle<()>>,
}

impl Feed {
    /// The batches that `loader` gives from now on.
    ///
    /// # Errors
    /// [`TrainerError::Config`] if no thread can be started.
    pub fn new(mut loader: Loader, device: Device) -> Result<Self, TrainerError> {
        let (position, per_epoch) = (loader.position(), loader.batches_per_epoch());
        let (give, made) = bounded(1);
        let work = move || loop {
            let batch = loader.next().map_err(TrainerError::from);
            let batch = batch.and_then(|batch| to_tensors(&batch, device));
            let failed = batch.is_err();
            // Nobody takes it any more, or there is nothing to go on with.
            if give.send(batch.map(|batch| (batch, loader.position()))).is_err() || failed {
                break;
            }
        };
        let thread = std::thread::Builder::new().name("feed".to_owned()).spawn(work);
        let thread =
            thread.map_err(|e| TrainerError::config(format!("start a thread for batches: {e}")))?;
        Ok(Self { made: Some(made), position, per_epoch, thread: Some(thread) })
    }

    /// The next batch. After an error there is none.
    ///
    /// # Errors
    /// The reader's, or [`TrainerError::Config`] if the device cannot hold the batch.
    pub fn next_batch(&mut self) -> Result<ImitationBatch, TrainerError> {
        let ended = || TrainerError::config("make a batch: the thread that makes them has ended");
        let (batch, position) =
            self.made.as_ref().and_then(|made| made.recv().ok()).ok_or_else(ended)??;
        self.position = position;
        Ok(batch)
    }

    /// The batch that comes next, whatever has been made ahead.
    pub fn position(&self) -> LoaderPosition {
        self.position
    }

    /// Batches per epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.per_epoch
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // The thread's `send` fails from now on.
        self.made = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by its own thread and, as a missing batch, to the learner.
            let _ = thread.join();
        }
    }
}

/// The batch on `device`; images stay u8.
///
/// # Errors
/// [`TrainerError::Config`] if libtorch cannot hold it.
pub fn to_tensors(batch: &DemoBatch, device: Device) -> Result<ImitationBatch, TrainerError> {
    let images = batch
        .images
        .iter()
        .map(|(camera, frames)| Ok((camera.clone(), tensor(frames, device)?)))
        .collect::<Result<_, TrainerError>>()?;
    Ok(ImitationBatch {
        obs: ObsBatch {
            images,
            proprio: tensor(&batch.proprio, device)?,
            instructions: batch.instructions.clone(),
        },
        actions: tensor(&batch.actions, device)?,
        valid: tensor(&batch.valid, device)?,
    })
}

fn tensor<T: Element + Clone, D: Dimension>(
    array: &Array<T, D>,
    device: Device,
) -> Result<Tensor, TrainerError> {
    let shape: Vec<i64> = array.shape().iter().map(|&n| n as i64).collect();
    let made = match array.as_slice() {
        Some(values) => Tensor::f_from_slice(values),
        None => Tensor::f_from_slice(&array.iter().cloned().collect::<Vec<_>>()),
    };
    made.and_then(|t| t.f_reshape(&shape))
        .and_then(|t| t.f_to_device(device))
        .map_err(|e| TrainerError::config(format!("copy a batch of {shape:?} to {device:?}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, Array3, Array5};
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use tch::Kind;

    #[test]
    fn every_number_keeps_its_place() {
        let numbers = |n: usize| (0..n).map(|i| i as f32).collect::<Vec<_>>();
        let batch = DemoBatch {
            images: BTreeMap::from([(
                "eye".to_owned(),
                Array5::from_shape_fn((2, 1, 2, 3, 3), |(b, _, y, x, c)| {
                    (b * 100 + y * 10 + x + c) as u8
                }),
            )]),
            proprio: Array3::from_shape_vec((2, 1, 3), numbers(6)).unwrap(),
            instructions: vec![Arc::from("a"), Arc::from("b")],
            // Not in standard order in memory.
            actions: Array3::from_shape_vec((2, 4, 2), numbers(16))
                .unwrap()
                .permuted_axes([0, 2, 1]),
            valid: Array2::ones((2, 2)),
        };
        let tensors = to_tensors(&batch, Device::Cpu).unwrap();
        assert_eq!(tensors.obs.images["eye"].kind(), Kind::Uint8);
        assert_eq!(tensors.obs.images["eye"].int64_value(&[1, 0, 1, 2, 1]), 113);
        assert_eq!(tensors.obs.proprio.double_value(&[1, 0, 2]), 5.0);
        assert_eq!(tensors.actions.size(), [2, 2, 4]);
        assert_eq!(tensors.actions.double_value(&[1, 1, 2]), f64::from(batch.actions[[1, 1, 2]]));
    }
}
