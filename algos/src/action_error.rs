//! How far predicted chunks of actions are from demonstrated ones, in the actions' own units.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::AlgoError;
use crate::loss::expect_shape;

/// Sums over windows; [`ActionError::finish`] makes the means. Names and meanings stand in `trainers/README.md`.
#[derive(Clone, Debug)]
pub struct ActionError {
    relative: Vec<f32>,
    actions: f64,
    windows: f64,
    triples: f64,
    absolute_error: f64,
    squared_error: f64,
    trajectory: f64,
    first_step: f64,
    end_point: f64,
    bend: f64,
    demonstrated_bend: f64,
}

impl ActionError {
    /// For actions of `D` numbers; `absolute` says which are places rather than steps. Steps are summed up to a
    /// trajectory before trajectories are compared.
    pub fn new(absolute: &[bool]) -> Self {
        Self {
            relative: absolute.iter().map(|a| f32::from(u8::from(!a))).collect(),
            actions: 0.0,
            windows: 0.0,
            triples: 0.0,
            absolute_error: 0.0,
            squared_error: 0.0,
            trajectory: 0.0,
            first_step: 0.0,
            end_point: 0.0,
            bend: 0.0,
            demonstrated_bend: 0.0,
        }
    }

    /// Takes in `B` windows: `predicted` and `demonstrated` `[B, T_p, D]`, `valid` `[B, T_p]` with 1 where the
    /// demonstration is real (all of them before the first 0).
    ///
    /// # Errors
    /// [`AlgoError::TensorShape`] unless the shapes fit.
    pub fn add(
        &mut self,
        predicted: &Tensor,
        demonstrated: &Tensor,
        valid: &Tensor,
    ) -> Result<(), AlgoError> {
        let _guard = tch::no_grad_guard();
        let d = self.relative.len() as i64;
        let [b, t] = <[i64; 2]>::try_from(valid.size()).map_err(|got| AlgoError::TensorShape {
            what: "valid",
            got,
            expected: vec![-1, -1],
        })?;
        expect_shape("predicted", predicted, &[b, t, d])?;
        expect_shape("demonstrated", demonstrated, &[b, t, d])?;
        let valid = valid.to_kind(Kind::Double);
        let [predicted, demonstrated] = [predicted, demonstrated].map(|x| x.to_kind(Kind::Double));
        let sum = |x: Tensor| x.sum(Kind::Double).double_value(&[]);
        let mask = valid.unsqueeze(-1);
        let length = valid.sum_dim_intlist(1, false, Kind::Double);

        let error = (&predicted - &demonstrated) * &mask;
        self.absolute_error += sum(error.abs());
        self.squared_error += sum(error.square());
        self.actions += sum(valid.shallow_clone());

        let relative = Tensor::from_slice(&self.relative).to_device(valid.device());
        let absolute = relative.ones_like() - &relative;
        // The difference of two summed trajectories is the summed difference.
        let path: Tensor = error.cumsum(1, Kind::Double) * &relative + &error * &absolute;
        let distance = path.square().sum_dim_intlist(-1, false, Kind::Double);
        self.trajectory += sum(&distance * &valid);
        let real = length.gt(0.0).to_kind(Kind::Double);
        self.windows += sum(real.shallow_clone());
        let distance = distance.sqrt();
        self.first_step += sum(distance.select(1, 0) * &real);
        let last = (length - 1.0).clamp_min(0.0).to_kind(Kind::Int64).unsqueeze(1);
        self.end_point += sum(distance.gather(1, &last, false).squeeze_dim(1) * &real);

        if t >= 3 {
            let mask = valid.narrow(1, 2, t - 2);
            let bend = |x: &Tensor| {
                // Second difference of the path: of places twice, of steps once.
                let step = x.diff::<Tensor>(1, 1, None, None);
                let places = step.diff::<Tensor>(1, 1, None, None) * &absolute;
                let steps = step.narrow(1, 1, t - 2) * &relative;
                let both: Tensor = places + steps;
                sum(both.square().sum_dim_intlist(-1, false, Kind::Double) * &mask)
            };
            self.bend += bend(&predicted);
            self.demonstrated_bend += bend(&demonstrated);
            self.triples += sum(mask.shallow_clone());
        }
        Ok(())
    }

    /// The means; empty if nothing was taken in.
    pub fn finish(&self) -> BTreeMap<&'static str, f64> {
        let mut metrics = BTreeMap::new();
        if self.actions > 0.0 {
            let numbers = self.actions * self.relative.len() as f64;
            metrics.insert("val/action_mae", self.absolute_error / numbers);
            metrics.insert("val/action_mse", self.squared_error / numbers);
            metrics.insert("val/trajectory_mse", self.trajectory / self.actions);
            metrics.insert("val/first_step_error", self.first_step / self.windows);
            metrics.insert("val/end_point_error", self.end_point / self.windows);
        }
        if self.triples > 0.0 {
            metrics.insert("val/smoothness", self.bend / self.triples);
            metrics.insert("val/smoothness_demonstrated", self.demonstrated_bend / self.triples);
        }
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: &[i64]) -> Tensor {
        Tensor::from_slice(values).reshape(shape)
    }

    #[test]
    fn worked_by_hand_for_places() {
        // One window of three actions in the plane, the last one padding.
        let demonstrated = tensor(&[0., 0., 1., 0., 9., 9.], &[1, 3, 2]);
        let predicted = tensor(&[3., 4., 1., 2., 0., 0.], &[1, 3, 2]);
        let mut error = ActionError::new(&[true, true]);
        error.add(&predicted, &demonstrated, &tensor(&[1., 1., 0.], &[1, 3])).unwrap();
        let metrics = error.finish();
        assert_eq!(metrics["val/action_mae"], (3. + 4. + 2.) / 4.);
        assert_eq!(metrics["val/action_mse"], 29. / 4.);
        assert_eq!(metrics["val/trajectory_mse"], 29. / 2.);
        assert_eq!(metrics["val/first_step_error"], 5.0);
        assert_eq!(metrics["val/end_point_error"], 2.0);
        assert!(!metrics.contains_key("val/smoothness")); // no three real actions in a row
    }

    #[test]
    fn steps_are_summed_to_a_trajectory_and_places_are_not() {
        let demonstrated = tensor(&[1., 1., 1.], &[1, 3, 1]);
        let predicted = tensor(&[2., 2., 1.], &[1, 3, 1]);
        let valid = tensor(&[1., 1., 1.], &[1, 3]);
        let mut steps = ActionError::new(&[false]);
        steps.add(&predicted, &demonstrated, &valid).unwrap();
        let metrics = steps.finish();
        // Ahead by 1, 2, 2 after the three steps.
        assert_eq!(metrics["val/trajectory_mse"], (1. + 4. + 4.) / 3.);
        assert_eq!(metrics["val/end_point_error"], 2.0);
        assert_eq!(metrics["val/smoothness"], 1.0); // the step shrinks from 2 to 1
        assert_eq!(metrics["val/smoothness_demonstrated"], 0.0);
        let mut places = ActionError::new(&[true]);
        places.add(&predicted, &demonstrated, &valid).unwrap();
        assert_eq!(places.finish()["val/end_point_error"], 0.0);
    }

    #[test]
    fn windows_weigh_by_their_real_actions_and_shapes_are_checked() {
        let mut error = ActionError::new(&[true]);
        let one = tensor(&[1., 1., 1., 1.], &[2, 2, 1]);
        error.add(&one, &one.zeros_like(), &tensor(&[1., 1., 0., 0.], &[2, 2])).unwrap();
        assert_eq!(error.finish()["val/first_step_error"], 1.0);
        assert!(error.add(&one, &one, &tensor(&[1., 1.], &[2, 1])).is_err());
        assert!(ActionError::new(&[true]).finish().is_empty());
    }
}
