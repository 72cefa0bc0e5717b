//! Where batches of demonstrations become tensors.

use ndarray::{Array, Dimension};
use simloop_policies::{ImitationBatch, ObsBatch};
use tch::{Device, Tensor, kind::Element};

use crate::TrainerError;
use crate::data::DemoBatch;

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
