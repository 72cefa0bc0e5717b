//! Walking round the block, and the agent's own dynamics.

use simloop_envs::pusht::{AGENT_RADIUS, ARENA_SIZE, DT};

use super::geometry::{CONVEX_CORNERS, Pose, Vec2, clearance, segment_clear};

/// Clearance of the corner nodes' axes from the T: the agent's centre passes corners this far out, px.
const NODE_OFFSET: f64 = 20.0;
/// Clearance that a leg of a path keeps where its ends allow, px.
const LEG_MARGIN: f64 = 17.5;
/// A walk may come this much closer to the T than its ends are, or touch it so deeply, px.
const TOUCH: f64 = 0.3;

/// An agent nearer to the T than this overlaps it and has to come out first, px.
const OVERLAP: f64 = AGENT_RADIUS - 1.0;

/// Number of way points round the block.
pub(super) const N_NODES: usize = 8;

/// The agent under its position controller (gym-pusht `step`: `k_p` 100, `k_v` 20, 100 Hz; critically damped).
#[derive(Clone, Copy, Debug)]
pub(super) struct Agent {
    /// px.
    pub(super) position: Vec2,
    /// px/s.
    pub(super) velocity: Vec2,
}

impl Agent {
    /// One physics sub-step toward `target`.
    pub(super) fn advance(&mut self, target: Vec2) {
        let acceleration = (target - self.position) * 100.0 - self.velocity * 20.0;
        self.velocity += acceleration * DT;
        self.position += self.velocity * DT;
    }
}

/// Shortest ways round the T in the body frame, over way points off its corners.
pub(super) struct Roadmap {
    nodes: [Vec2; N_NODES],
    /// Length of a free leg, infinite where the T is in the way.
    legs: [[f64; N_NODES]; N_NODES],
}

impl Roadmap {
    pub(super) fn new() -> Self {
        let centre = Vec2::new(0.0, 45.0);
        let mut nodes = [Vec2::zeros(); N_NODES];
        for (node, corner) in nodes.iter_mut().zip(CONVEX_CORNERS) {
            let out = corner - centre;
            // The stem's sides face left and right, the bar's also up and down.
            *node = corner + Vec2::new(out.x.signum(), out.y.signum()) * NODE_OFFSET;
            if corner.y == 30.0 {
                node.y = corner.y + NODE_OFFSET;
            }
        }
        nodes[6] = Vec2::new(15.0 + NODE_OFFSET, 30.0 + NODE_OFFSET);
        nodes[7] = Vec2::new(-15.0 - NODE_OFFSET, 30.0 + NODE_OFFSET);
        let mut legs = [[f64::INFINITY; N_NODES]; N_NODES];
        for i in 0..N_NODES {
            for j in 0..N_NODES {
                if segment_clear(nodes[i], nodes[j], LEG_MARGIN) {
                    legs[i][j] = (nodes[i] - nodes[j]).norm();
                }
            }
        }
        Self { nodes, legs }
    }

    /// Shortest distance from `start` to every node, and the node before it (`N_NODES` for the start itself). Only
    /// nodes for which `usable` holds are passed.
    fn distances(
        &self,
        start: Vec2,
        usable: [bool; N_NODES],
    ) -> ([f64; N_NODES], [usize; N_NODES]) {
        let mut distance = [f64::INFINITY; N_NODES];
        let mut before = [N_NODES; N_NODES];
        let mut settled = [false; N_NODES];
        for i in 0..N_NODES {
            if usable[i] {
                distance[i] = leg(start, self.nodes[i]);
            }
        }
        while let Some(i) = (0..N_NODES)
            .filter(|&i| !settled[i] && distance[i].is_finite())
            .min_by(|&a, &b| distance[a].total_cmp(&distance[b]))
        {
            settled[i] = true;
            for j in 0..N_NODES {
                let through = distance[i] + self.legs[i][j];
                if usable[j] && through < distance[j] {
                    distance[j] = through;
                    before[j] = i;
                }
            }
        }
        (distance, before)
    }

    /// Which way points lie inside the arena.
    pub(super) fn usable(&self, pose: &Pose) -> [bool; N_NODES] {
        self.nodes.map(|node| in_arena(pose.world_from_body(node)))
    }

    /// The ways that start at `start` and pass `usable` way points.
    pub(super) fn from(&self, start: Vec2, usable: [bool; N_NODES]) -> Ways<'_> {
        self.through(start, nearest_side(start), usable)
    }

    /// The ways of an agent in the arena beside (or inside) a block at `pose`.
    pub(super) fn around(&self, agent: Vec2, pose: &Pose) -> Ways<'_> {
        let start = pose.body_from_world(agent);
        let mut door = nearest_side(start);
        if !in_arena(pose.world_from_body(door)) {
            door = far_sides(start)
                .filter(|&p| in_arena(pose.world_from_body(p)))
                .min_by(|a, b| (a - start).norm().total_cmp(&(b - start).norm()))
                .unwrap_or(door);
        }
        self.through(start, door, self.usable(pose))
    }

    fn through(&self, start: Vec2, door: Vec2, usable: [bool; N_NODES]) -> Ways<'_> {
        let (distance, before) = self.distances(door, usable);
        Ways { map: self, start, door, distance, before }
    }
}

/// Where an agent that overlaps the T comes out first; `start` itself for all others.
fn nearest_side(start: Vec2) -> Vec2 {
    let (inside, out) = clearance(start);
    if inside < OVERLAP { start + out * (AGENT_RADIUS + 1.0 - inside) } else { start }
}

/// Where it comes out along the body's axes: for a block at a wall, through which the nearest side may lead.
fn far_sides(start: Vec2) -> impl Iterator<Item = Vec2> {
    const STRIDE: f64 = 4.0;
    [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]].into_iter().filter_map(move |axis| {
        (1..50)
            .map(|i| start + Vec2::from(axis) * (STRIDE * f64::from(i)))
            .find(|&p| clearance(p).0 > AGENT_RADIUS)
    })
}

/// Whether the agent can be told to go there.
pub(super) fn in_arena(p: Vec2) -> bool {
    (0.0..=ARENA_SIZE).contains(&p.x) && (0.0..=ARENA_SIZE).contains(&p.y)
}

/// Length of the straight leg, infinite where the T is in the way.
fn leg(a: Vec2, b: Vec2) -> f64 {
    let margin = LEG_MARGIN.min(clearance(a).0 - TOUCH).min(clearance(b).0 - TOUCH);
    if segment_clear(a, b, margin) { (a - b).norm() } else { f64::INFINITY }
}

/// Shortest ways from one place to all others.
pub(super) struct Ways<'a> {
    map: &'a Roadmap,
    start: Vec2,
    door: Vec2,
    distance: [f64; N_NODES],
    before: [usize; N_NODES],
}

impl Ways<'_> {
    /// Length of the shortest way to `end` and the last node of it; infinite when there is none.
    fn last(&self, end: Vec2) -> (f64, usize) {
        let direct = leg(self.door, end);
        if direct.is_finite() {
            return (direct, N_NODES);
        }
        let mut best = (f64::INFINITY, N_NODES);
        for i in 0..N_NODES {
            if self.distance[i].is_finite() {
                let flight = self.distance[i] + (self.map.nodes[i] - end).norm();
                if flight < best.0 && leg(self.map.nodes[i], end).is_finite() {
                    best = (flight, i);
                }
            }
        }
        best
    }

    /// Length of the shortest way to `end`, px; infinite when there is none.
    pub(super) fn length(&self, end: Vec2) -> f64 {
        self.last(end).0 + (self.door - self.start).norm()
    }

    /// The way points of the shortest way, without the start, with the end. `None` when there is no way.
    pub(super) fn path(&self, end: Vec2) -> Option<Vec<Vec2>> {
        let (length, mut node) = self.last(end);
        if !length.is_finite() {
            return None;
        }
        let mut path = vec![end];
        while node < N_NODES {
            path.push(self.map.nodes[node]);
            node = self.before[node];
        }
        if self.door != self.start {
            path.push(self.door);
        }
        path.reverse();
        Some(path)
    }
}

/// Half a second: by then a critically damped agent has all but arrived.
const HOLD_SUB_STEPS: usize = 50;

/// Whether an agent that is told `target` now and for the next half second stays off the block.
pub(super) fn target_is_safe(agent: Agent, target: Vec2, pose: &Pose) -> bool {
    let mut agent = agent;
    let now = clearance(pose.body_from_world(agent.position)).0;
    let floor = (AGENT_RADIUS - TOUCH).min(now - TOUCH);
    for _ in 0..HOLD_SUB_STEPS {
        agent.advance(target);
        if clearance(pose.body_from_world(agent.position)).0 < floor {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use simloop_envs::pusht::{Pose as Placed, SUB_STEPS, Scene, SceneState};

    #[test]
    fn the_agent_moves_as_in_the_simulator() {
        let far = Placed { x: 400.0, y: 100.0, angle: 0.0 };
        let mut scene = Scene::new(SceneState::at_rest([100.0, 400.0], far));
        let mut agent = Agent { position: Vec2::new(100.0, 400.0), velocity: Vec2::zeros() };
        for target in [Vec2::new(150.0, 300.0), Vec2::new(60.0, 420.0)] {
            scene.control_step([target.x, target.y]);
            for _ in 0..SUB_STEPS {
                agent.advance(target);
            }
            let state = scene.state();
            assert!((agent.position - Vec2::from(state.agent)).norm() < 1e-9);
            assert!((agent.velocity - Vec2::from(state.agent_velocity)).norm() < 1e-9);
        }
    }

    #[test]
    fn ways_lead_round_the_t_without_touching_it() {
        let map = Roadmap::new();
        let places =
            [[0.0, -19.0], [79.0, 15.0], [34.0, 75.0], [0.0, 139.0], [-34.0, 60.0], [-45.0, 49.0]];
        for start in places.map(Vec2::from) {
            let ways = map.from(start, [true; N_NODES]);
            for end in places.map(Vec2::from) {
                let path = ways.path(end).expect("all way points may be used");
                let mut length = 0.0;
                let mut from = start;
                for &to in &path {
                    assert!(segment_clear(from, to, AGENT_RADIUS), "{start} to {end}: {path:?}");
                    length += (to - from).norm();
                    from = to;
                }
                assert_eq!(from, end);
                assert!((length - ways.length(end)).abs() < 1e-9);
                assert!(length < (end - start).norm() + 250.0, "{start} to {end}: {length}");
            }
        }
    }

    #[test]
    fn blocked_way_points_force_the_other_way_round() {
        let map = Roadmap::new();
        let (left, right) = (Vec2::new(-79.0, 15.0), Vec2::new(79.0, 15.0));
        let over_the_bar = map.from(left, [true; N_NODES]).length(right);
        let mut usable = [true; N_NODES];
        (usable[0], usable[1]) = (false, false);
        let round_the_stem = map.from(left, usable).length(right);
        assert!(over_the_bar < 260.0 && round_the_stem > 300.0 && round_the_stem.is_finite());
        assert!(map.from(left, [false; N_NODES]).length(right).is_infinite());
    }

    #[test]
    fn an_agent_inside_the_block_leaves_by_the_nearest_side() {
        let map = Roadmap::new();
        let path = map.from(Vec2::new(50.0, 27.0), [true; N_NODES]).path(Vec2::new(0.0, -18.0));
        let first = path.expect("there is a way")[0];
        assert!((first - Vec2::new(50.0, 46.0)).norm() < 1e-9, "{first}");
    }

    #[test]
    fn an_agent_inside_a_block_at_a_wall_leaves_on_the_free_side() {
        // The bar lies along the upper wall, the agent presses it there: above it is no room.
        let pose = Pose::from_origin([256.0, 8.0, 0.0]);
        let agent = pose.world_from_body(Vec2::new(35.0, 10.0));
        let path = Roadmap::new().around(agent, &pose).path(Vec2::new(45.0, 48.0));
        let first = path.expect("there is a way below")[0];
        assert!((first.x - 35.0).abs() < 1e-9 && first.y >= 45.0, "{first}");
    }

    #[test]
    fn a_target_behind_the_block_is_not_safe() {
        let pose = Pose::from_origin([256.0, 256.0, 0.0]);
        let resting = Agent { position: Vec2::new(256.0, 200.0), velocity: Vec2::zeros() };
        assert!(target_is_safe(resting, Vec2::new(150.0, 200.0), &pose));
        assert!(!target_is_safe(resting, Vec2::new(256.0, 420.0), &pose));
        // The same harmless target is none for an agent that still flies at the block.
        let flying = Agent { velocity: Vec2::new(0.0, 1500.0), ..resting };
        assert!(!target_is_safe(flying, Vec2::new(256.0, 200.0), &pose));
    }
}
