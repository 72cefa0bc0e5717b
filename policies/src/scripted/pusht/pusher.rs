//! From the plan to the next target: walk to the contact, or push.

use std::sync::LazyLock;

use simloop_envs::pusht::{AGENT_RADIUS, ARENA_SIZE};

use super::geometry::{Pose, Vec2};
use super::plan::{GAP, Plan, Planner, Target};
use super::walk::{Agent, target_is_safe};

/// How far ahead of the contact the target runs while pushing, px: the controller lags 0.2 s behind a moving target.
const PUSH_LEAD: f64 = 30.0;
/// The agent pushes once it stands this close to the contact's axis, px.
const AXIS_TOLERANCE: f64 = 2.0;
/// Depth to which a pushing agent may sink into the block, px: fast pushes overlap it for a while.
const DEEPEST: f64 = 4.0;
/// Distances ahead on the path at which a target is tried, px.
const LOOK_AHEAD: [f64; 9] = [200.0, 150.0, 110.0, 80.0, 55.0, 38.0, 25.0, 14.0, 7.0];

/// A plan that takes longer than this does not arrive, s.
const ARRIVES_SECS: f64 = 9.0;
/// A block is at a wall when the agent does not fit between them, px.
const AT_WALL: f64 = 2.0 * AGENT_RADIUS;
/// An escape is followed for this many steps at most.
const ESCAPE_STEPS: u32 = 30;
/// A fresh plan replaces the one begun only if it saves this much, s: the search is not consistent from state to state,
/// and without a margin the agent can dither between two plans for ever.
const MARGIN_SECS: f64 = 0.3;
/// A plan that goes as foreseen is compared with a fresh one after this many steps.
const PLAN_STEPS: u32 = 4;

/// The planner with the little it remembers.
pub(super) struct Pusher {
    planner: &'static Planner,
    /// What the plan leads to.
    target: Option<Target>,
    plan: Option<Plan>,
    /// Steps until a plan that goes well is compared with a fresh one.
    keep: u32,
    /// Steps for which an escape is still followed.
    escaping: u32,
}

impl Pusher {
    pub(super) fn new() -> Self {
        static PLANNER: LazyLock<Planner> = LazyLock::new(Planner::new);
        Self { planner: &PLANNER, target: None, plan: None, keep: 0, escaping: 0 }
    }

    /// Forgets the plan.
    pub(super) fn reset(&mut self) {
        self.plan = None;
        self.keep = 0;
        self.escaping = 0;
    }

    /// The plan to act on now: the one begun, unless it fails or a fresh one is clearly better.
    fn choose(&mut self, agent: Vec2, pose: &Pose, target: Target) -> Option<Plan> {
        if self.target.replace(target) != Some(target) {
            self.reset();
        }
        let start = self.planner.start(agent, pose, target);
        let before_secs = self.plan.as_ref().map_or(0.0, |plan| plan.secs);
        let begun = self.plan.take().and_then(|plan| self.planner.follow(&plan, &start));
        self.escaping = self.escaping.saturating_sub(1);
        self.keep = self.keep.saturating_sub(1);
        if let Some(begun) = &begun
            && (self.escaping > 0 || (self.keep > 0 && begun.secs <= before_secs))
        {
            return Some(begun.clone());
        }
        self.escaping = 0;
        self.keep = PLAN_STEPS;
        let fresh = self.planner.plan(&start);
        if pose.wall_depth() > -AT_WALL && fresh.as_ref().is_none_or(|f| f.secs > ARRIVES_SECS) {
            self.escaping = ESCAPE_STEPS;
            if let Some(escape) = self.planner.escape(&start) {
                return Some(escape);
            }
        }
        match (begun, fresh) {
            (Some(begun), Some(fresh)) if fresh.secs < begun.secs - MARGIN_SECS => Some(fresh),
            (begun, fresh) => begun.or(fresh),
        }
    }

    /// The next target, px; `None` where no push is possible.
    pub(super) fn act(&mut self, agent: Agent, pose: &Pose, target: Target) -> Option<Vec2> {
        self.plan = self.choose(agent.position, pose, target);
        let push = self.plan.as_ref()?.pushes[0];
        let contact = self.planner.contacts[push.contact];
        let here = pose.body_from_world(agent.position);
        let along = Vec2::new(-contact.normal.y, contact.normal.x);
        let offset = here - contact.point;
        let (height, lateral) = (offset.dot(&contact.normal), offset.dot(&along));
        let at_contact = lateral.abs() < AXIS_TOLERANCE
            && (AGENT_RADIUS - DEEPEST..AGENT_RADIUS + 2.0 * GAP).contains(&height);
        let target = if at_contact {
            let after = contact.motion(push.travel.min(PUSH_LEAD)).apply(pose);
            after.world_from_body(contact.agent(0.0))
        } else {
            self.walk(agent, pose, contact.agent(GAP))
        };
        Some(target.map(|x| x.clamp(0.0, ARENA_SIZE)))
    }

    /// The farthest point on the way to `end` (body frame) that the agent can be told to go to without touching the
    /// block.
    fn walk(&self, agent: Agent, pose: &Pose, end: Vec2) -> Vec2 {
        let here = pose.body_from_world(agent.position);
        let Some(path) = self.planner.ways(agent.position, pose).path(end) else {
            return agent.position;
        };
        let mut nearest = agent.position;
        for ahead in LOOK_AHEAD {
            let target = pose.world_from_body(point_on(here, &path, ahead));
            if target_is_safe(agent, target, pose) {
                return target;
            }
            nearest = target;
        }
        nearest
    }
}

/// The point `distance` along the path, its end if that is nearer.
fn point_on(start: Vec2, path: &[Vec2], distance: f64) -> Vec2 {
    let mut from = start;
    let mut left = distance;
    for &to in path {
        let length = (to - from).norm();
        if length > left {
            return from + (to - from) * (left / length);
        }
        left -= length;
        from = to;
    }
    from
}
