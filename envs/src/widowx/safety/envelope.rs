//! One axis' admissible displacement.

/// The limits of one axis over one period: largest displacement, and largest change of it from one period to the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    /// Largest displacement, the smaller of step and speed limit times period.
    pub(super) reach: f64,
    /// Largest change of displacement: acceleration times period squared.
    pub(super) change: f64,
}

impl Axis {
    pub(super) fn new(step: f64, speed: f64, acceleration: f64, period: f64) -> Self {
        Self { reach: step.min(speed * period), change: acceleration * period * period }
    }

    /// The displacements `(low, high)` allowed after `previous`, without walls.
    pub(super) fn free(&self, previous: f64) -> (f64, f64) {
        ((previous - self.change).max(-self.reach), (previous + self.change).min(self.reach))
    }

    /// The displacements allowed after `previous` with walls at distances `below` and `above` (both at least 0): after each
    /// of them the axis can still come to rest before the wall, slowing down by `change` a period.
    ///
    /// Never empty if `previous` was allowed where it was made: slowing down by `change` then keeps the room.
    pub(super) fn between(&self, previous: f64, below: f64, above: f64) -> (f64, f64) {
        let (low, high) = self.free(previous);
        (low.max(-self.brakeable(below)), high.min(self.brakeable(above)))
    }

    /// The largest displacement `e` whose stopping distance, `e + (e - change) + (e - 2 change) + …`, fits into `room`.
    pub(super) fn brakeable(&self, room: f64) -> f64 {
        if room <= 0.0 {
            return 0.0;
        }
        // With n further periods of braking: (n + 1) e - change n (n + 1) / 2 = room.
        for n in 0..1000 {
            let n = f64::from(n);
            let e = room / (n + 1.0) + self.change * n / 2.0;
            if e <= (n + 1.0) * self.change {
                return e.min(self.reach);
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braking_distance_is_the_worked_sum() {
        let axis = Axis { reach: 1.0, change: 0.1 };
        // 0.25 + 0.15 + 0.05 = 0.45
        assert!((axis.brakeable(0.45) - 0.25).abs() < 1e-12);
        // Within one period's change nothing is needed beyond the step itself.
        assert!((axis.brakeable(0.07) - 0.07).abs() < 1e-12);
        assert_eq!(axis.brakeable(0.0), 0.0);
        assert_eq!(axis.brakeable(-1.0), 0.0);
        assert_eq!(axis.brakeable(1e9), 0.0_f64.max(axis.reach.min(axis.brakeable(1e9))));
    }

    #[test]
    fn an_axis_that_always_pushes_stops_at_the_wall_within_its_limits() {
        for (reach, change) in [(0.05, 0.084), (0.05, 0.004), (0.05, 0.0013)] {
            let axis = Axis { reach, change };
            let (mut at, mut previous, wall) = (0.0, 0.0, 0.731);
            for _ in 0..2000 {
                let (low, high) = axis.between(previous, at + 10.0, wall - at);
                assert!(low <= high + 1e-12, "{low} {high}");
                assert!(high - previous <= change + 1e-12 && previous - high <= change + 1e-12);
                at += high;
                previous = high;
                assert!(at <= wall + 1e-9, "{at}");
            }
            assert!(wall - at < 1e-3, "{at}");
        }
    }
}
