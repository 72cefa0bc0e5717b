//! Which pushes bring the block home soonest: a beam search over a few pushes and the walks between them.

use simloop_envs::pusht::{self as env, SUCCESS_COVERAGE};

use super::geometry::{Pose, Vec2};
use super::push::{Contact, Motion, N_EDGES, contacts};
use super::squeeze::push_against_walls;
use super::walk::{N_NODES, Roadmap, Ways, in_arena};

/// Speed of the contact while pushing, as the controller reaches it on average, px/s.
const PUSH_SPEED: f64 = 130.0;
/// The same for walks, px/s.
const WALK_SPEED: f64 = 350.0;
/// Time lost by stopping at a contact that is not the present one, s, and the walk that loses half of it, px.
const STOP_SECS: f64 = 0.4;
const STOP_RANGE: f64 = 10.0;
/// Time lost by every push, s.
const PUSH_SECS: f64 = 0.1;
/// Weight of a turn against a shift, px/rad: about the root mean square distance of the T's outline from its centre.
const LEVER: f64 = 45.0;
/// Longest sequence of pushes.
const DEPTH: usize = 4;
/// Sequences kept at every length.
const BEAM: usize = 24;
/// The guess of the time that a distance from the goal still costs is
/// `GUESS_SLOPE · d / PUSH_SPEED + GUESS_SECS · d / (d + GUESS_RANGE) + UNSOLVED_SECS`, where `d` is beyond
/// `TOLERANCE`, px. It is meant to be too much: with a fair guess a push of a few pixels that only comes closer looks as cheap as
/// a plan that arrives, and the agent creeps.
const GUESS_SLOPE: f64 = 4.0;
const GUESS_SECS: f64 = 8.0;
const GUESS_RANGE: f64 = 15.0;
const UNSOLVED_SECS: f64 = 1.0;
const TOLERANCE: f64 = 1.0;
/// How far pushes go, px.
const TRAVELS: [f64; 15] =
    [4.0, 7.0, 11.0, 15.0, 20.0, 26.0, 33.0, 42.0, 53.0, 67.0, 84.0, 105.0, 130.0, 160.0, 200.0];
/// Continuations of one sequence by pushes on the same edge that are kept: the rest are much alike.
const PER_EDGE: u8 = 3;
/// How far the pushes go that take the block off the walls, px.
const ESCAPES: [f64; 4] = [15.0, 35.0, 60.0, 90.0];
/// Contacts are at most this far apart and this far from the ends of their edge, px.
const CONTACT_SPACING: f64 = 6.0;
const CONTACT_INSET: f64 = 2.0;
/// Gap at which the agent stands before it pushes, px.
pub(super) const GAP: f64 = 3.0;
/// A push shorter than this is done, px.
const DONE: f64 = 0.4;
/// Coverage that counts as solved in a plan: a little more than the task asks for.
const SOLVED: f64 = SUCCESS_COVERAGE + 0.005;
/// Distance from the goal below which the coverage is looked at, px; it is below 0.9 beyond.
const NEAR: f64 = 8.0;

/// Depth in a wall that a plan ignores, px.
const WALL_TOUCH: f64 = 0.5;
/// Travels that end this near to the goal are aimed exactly, px: beyond, those of the list will do.
const AIMED: f64 = 30.0;

/// One push of a plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Push {
    /// Index into [`Planner::contacts`].
    pub(super) contact: usize,
    /// How far the contact is to advance, px.
    pub(super) travel: f64,
    /// Where the block will be.
    after: Pose,
}

/// What to do.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// At least one.
    pub(super) pushes: Vec<Push>,
    /// Time of the plan and the guess of what remains afterwards, s.
    pub(super) secs: f64,
}

/// A sequence of pushes in the search.
struct Node {
    pose: Pose,
    secs: f64,
    bound: f64,
    pushes: Vec<Push>,
}

/// A sequence with one more push, before [`Planner::visit`] looked at it closely.
struct Child {
    parent: usize,
    contact: usize,
    motion: Motion,
    secs: f64,
    bound: f64,
}

/// Where the block has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Target {
    /// By the centre of gravity.
    pose: Pose,
    origin: env::Pose,
}

impl Target {
    pub(super) fn new(goal: env::Pose) -> Self {
        Self { pose: Pose::from_origin([goal.x, goal.y, goal.angle]), origin: goal }
    }

    /// Whether a block at `pose` counts as home.
    pub(super) fn is_solved(&self, pose: &Pose) -> bool {
        pose.coverage(&self.origin) > SUCCESS_COVERAGE
    }
}

/// Where a search starts and leads: the block's pose, what the agent has to walk to each contact, s, and the target.
pub(super) struct Start {
    pose: Pose,
    target: Target,
    walk_secs: Vec<f64>,
}

/// Contacts, what each push does, and the walks between them: all that does not depend on the state.
pub(super) struct Planner {
    pub(super) contacts: Vec<Contact>,
    /// Per contact, for every travel of [`TRAVELS`].
    motions: Vec<[Motion; TRAVELS.len()]>,
    /// Walk from every contact to every other, px.
    walks: Vec<Vec<f64>>,
    roadmap: Roadmap,
}

impl Planner {
    pub(super) fn new() -> Self {
        let contacts = contacts(CONTACT_SPACING, CONTACT_INSET);
        let roadmap = Roadmap::new();
        let motions = contacts.iter().map(|c| TRAVELS.map(|t| c.motion(t))).collect();
        let walks = contacts
            .iter()
            .map(|from| {
                let ways = roadmap.from(from.agent(0.0), [true; N_NODES]);
                contacts.iter().map(|to| ways.length(to.agent(GAP))).collect()
            })
            .collect();
        Self { contacts, motions, walks, roadmap }
    }

    /// The ways of an agent (world position) round the block.
    pub(super) fn ways(&self, agent: Vec2, pose: &Pose) -> Ways<'_> {
        self.roadmap.around(agent, pose)
    }

    /// A state to plan from.
    pub(super) fn start(&self, agent: Vec2, pose: &Pose, target: Target) -> Start {
        let ways = self.ways(agent, pose);
        let walk_secs =
            self.contacts.iter().map(|c| walk_secs(ways.length(c.agent(GAP)))).collect();
        Start { pose: *pose, target, walk_secs }
    }

    /// The guess of the time still needed with the coverage looked at, s.
    fn remaining_secs_at(target: &Target, pose: &Pose) -> f64 {
        let distance = pose.squared_distance(&target.pose, LEVER).sqrt();
        if distance < NEAR && pose.coverage(&target.origin) > SOLVED {
            return 0.0;
        }
        UNSOLVED_SECS + remaining_secs(distance)
    }

    /// The cheapest plan that the search finds; `None` where no push is possible.
    pub(super) fn plan(&self, start: &Start) -> Option<Plan> {
        let mut level =
            vec![Node { pose: start.pose, secs: 0.0, bound: f64::INFINITY, pushes: Vec::new() }];
        let mut best: Option<Plan> = None;
        for _ in 0..DEPTH {
            let limit = best.as_ref().map_or(f64::INFINITY, |b| b.secs);
            let mut children = Vec::new();
            for (parent, node) in level.iter().enumerate() {
                for contact in 0..self.contacts.len() {
                    let secs = node.secs + self.approach_secs(start, node, contact) + PUSH_SECS;
                    if secs < limit {
                        self.expand(parent, node, contact, secs, &start.target, &mut children);
                    }
                }
            }
            children.sort_by(|a, b| a.bound.total_cmp(&b.bound));
            let usable: Vec<_> = level.iter().map(|n| self.roadmap.usable(&n.pose)).collect();
            let mut kept = vec![[0_u8; N_EDGES]; level.len()];
            let mut next: Vec<Node> = Vec::new();
            for child in children {
                if next.len() >= BEAM {
                    break;
                }
                let parent = &level[child.parent];
                let kept = &mut kept[child.parent][self.contacts[child.contact].edge];
                if *kept >= PER_EDGE {
                    continue;
                }
                let usable = usable[child.parent];
                let Some(node) = self.visit(&start.target, parent, usable, &child) else {
                    continue;
                };
                if best.as_ref().is_none_or(|b| node.bound < b.secs) {
                    best = Some(Plan { pushes: node.pushes.clone(), secs: node.bound });
                }
                *kept += 1;
                next.push(node);
            }
            level = next;
        }
        best
    }

    /// Time to walk to `contact` from where a sequence ends, s; the arena's limits are left to [`visit`](Self::visit).
    fn approach_secs(&self, start: &Start, node: &Node, contact: usize) -> f64 {
        match node.pushes.last() {
            None => start.walk_secs[contact],
            Some(last) => walk_secs(self.walks[last.contact][contact]),
        }
    }

    /// A push that brings the block off the walls it is jammed against, whatever it does to the distance from the goal.
    pub(super) fn escape(&self, start: &Start) -> Option<Plan> {
        let mut best: Option<(f64, Push)> = None;
        for (contact, c) in self.contacts.iter().enumerate() {
            let stand = c.agent(1.0);
            if start.walk_secs[contact].is_infinite()
                || !in_arena(start.pose.world_from_body(stand))
            {
                continue;
            }
            for travel in ESCAPES {
                let Some(after) = push_against_walls(&start.pose, c, travel) else { break };
                let depth = after.wall_depth();
                if in_arena(after.world_from_body(stand)) && best.is_none_or(|b| depth < b.0) {
                    best = Some((depth, Push { contact, travel, after }));
                }
            }
        }
        let (_, push) = best?;
        Some(Plan { pushes: vec![push], secs: start.walk_secs[push.contact] })
    }

    /// What is left of a plan, each push aimed anew at where it was to bring the block; `None` when it is done or
    /// cannot be followed from here.
    pub(super) fn follow(&self, plan: &Plan, start: &Start) -> Option<Plan> {
        let mut node =
            Node { pose: start.pose, secs: 0.0, bound: f64::INFINITY, pushes: Vec::new() };
        for push in &plan.pushes {
            let motion = self.aim(push.contact, &node.pose, &push.after);
            if motion.travel < DONE {
                continue;
            }
            let secs = node.secs
                + self.approach_secs(start, &node, push.contact)
                + PUSH_SECS
                + motion.travel / PUSH_SPEED;
            let child = Child { parent: 0, contact: push.contact, motion, secs, bound: secs };
            node = self.visit(&start.target, &node, self.roadmap.usable(&node.pose), &child)?;
        }
        (!node.pushes.is_empty()).then_some(Plan { pushes: node.pushes, secs: node.bound })
    }

    /// The push by `contact` that ends nearest to `target`.
    fn aim(&self, contact: usize, pose: &Pose, target: &Pose) -> Motion {
        let squared = self.motions[contact].map(|m| m.apply(pose).squared_distance(target, LEVER));
        let i = least(&squared);
        let here = pose.squared_distance(target, LEVER);
        let travel = vertex(i, &squared, here);
        self.contacts[contact].motion(travel)
    }

    /// Adds the most promising travels of one contact: the two cheapest of the list, and near the goal the exact one.
    fn expand(
        &self,
        parent: usize,
        node: &Node,
        contact: usize,
        start_secs: f64,
        target: &Target,
        children: &mut Vec<Child>,
    ) {
        let motions = &self.motions[contact];
        let squared = motions.map(|m| m.apply(&node.pose).squared_distance(&target.pose, LEVER));
        let child = |motion: &Motion, squared: f64| {
            let secs = start_secs + motion.travel / PUSH_SPEED;
            let bound = secs + remaining_secs(squared.sqrt());
            Child { parent, contact, motion: *motion, secs, bound }
        };
        let mut top: [Option<Child>; 2] = [None, None];
        for (motion, &squared) in motions.iter().zip(&squared) {
            let new = child(motion, squared);
            if top[0].as_ref().is_none_or(|t| new.bound < t.bound) {
                top[1] = top[0].replace(new);
            } else if top[1].as_ref().is_none_or(|t| new.bound < t.bound) {
                top[1] = Some(new);
            }
        }
        children.extend(top.into_iter().flatten());
        let i = least(&squared);
        if squared[i] < AIMED * AIMED {
            let here = node.pose.squared_distance(&target.pose, LEVER);
            let motion = self.contacts[contact].motion(vertex(i, &squared, here));
            if motion.travel > DONE {
                let pose = motion.apply(&node.pose);
                children.push(child(&motion, pose.squared_distance(&target.pose, LEVER)));
            }
        }
    }

    /// What the expansion ignored: that walls hold the block, that the agent stays in the arena, and the coverage.
    /// `None` when the push cannot be made.
    fn visit(
        &self,
        target: &Target,
        parent: &Node,
        usable: [bool; N_NODES],
        child: &Child,
    ) -> Option<Node> {
        let contact = &self.contacts[child.contact];
        let stand = contact.agent(1.0);
        if !in_arena(parent.pose.world_from_body(stand)) {
            return None;
        }
        let mut pose = child.motion.apply(&parent.pose);
        let mut secs = child.secs;
        if pose.wall_depth() > WALL_TOUCH.max(parent.pose.wall_depth()) {
            pose = push_against_walls(&parent.pose, contact, child.motion.travel)?;
        }
        if !in_arena(pose.world_from_body(stand)) {
            return None;
        }
        if let Some(last) = parent.pushes.last()
            && usable.contains(&false)
        {
            let from = self.contacts[last.contact].agent(0.0);
            let length = self.roadmap.from(from, usable).length(contact.agent(GAP));
            secs += walk_secs(length) - walk_secs(self.walks[last.contact][child.contact]);
        }
        let bound = secs + Self::remaining_secs_at(target, &pose);
        let mut pushes = parent.pushes.clone();
        pushes.push(Push { contact: child.contact, travel: child.motion.travel, after: pose });
        bound.is_finite().then_some(Node { pose, secs, bound, pushes })
    }
}

/// Time to walk `distance` px and stop there, s.
fn walk_secs(distance: f64) -> f64 {
    if distance.is_infinite() {
        return f64::INFINITY;
    }
    distance / WALK_SPEED + STOP_SECS * distance / (distance + STOP_RANGE)
}

/// Guess of the time still needed by the distance from the goal, s.
fn remaining_secs(distance: f64) -> f64 {
    let d = (distance - TOLERANCE).max(0.0);
    GUESS_SLOPE * d / PUSH_SPEED + GUESS_SECS * d / (d + GUESS_RANGE)
}

/// The index of the least value.
fn least(values: &[f64; TRAVELS.len()]) -> usize {
    (1..values.len()).fold(0, |best, i| if values[i] < values[best] { i } else { best })
}

/// Travel at the vertex of the parabola through the least of `squared` and its neighbours; `here` is the value at 0.
fn vertex(i: usize, squared: &[f64; TRAVELS.len()], here: f64) -> f64 {
    let (x0, y0) = if i == 0 { (0.0, here) } else { (TRAVELS[i - 1], squared[i - 1]) };
    let (x1, y1) = (TRAVELS[i], squared[i]);
    let Some(&x2) = TRAVELS.get(i + 1) else { return x1 };
    let y2 = squared[i + 1];
    let (a, b) = ((y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1));
    let curvature = (b - a) / (x2 - x0);
    if curvature <= 1e-9 {
        return if y0 < y1 { x0 } else { x1 };
    }
    (((x0 + x1) - a / curvature) / 2.0).clamp(x0, x2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Target {
        Target::new(env::GOAL)
    }

    #[test]
    fn the_vertex_of_a_parabola_is_found_between_uneven_samples() {
        let squared = TRAVELS.map(|t| 3.0 + 2.0 * (t - 29.0).powi(2));
        let i = least(&squared);
        assert_eq!(TRAVELS[i], 26.0);
        assert!((vertex(i, &squared, 3.0 + 2.0 * 29.0 * 29.0) - 29.0).abs() < 1e-9);
    }

    #[test]
    fn the_vertex_of_a_rising_line_is_no_push() {
        let squared = TRAVELS.map(|t| 10.0 + t);
        assert_eq!(vertex(least(&squared), &squared, 10.0), 0.0);
    }

    #[test]
    fn a_block_one_push_away_is_solved_by_that_push() {
        let planner = Planner::new();
        // Twenty pixels along the stem from the goal: the middle of the bar's outer edge pushes it home.
        let pose = home().pose.moved(Vec2::new(0.0, -20.0), 0.0, Vec2::new(1.0, 0.0));
        let agent = pose.world_from_body(Vec2::new(5.0, -18.0));
        let plan = planner.plan(&planner.start(agent, &pose, home())).expect("the block is free");
        assert_eq!(plan.pushes.len(), 1);
        let contact = planner.contacts[plan.pushes[0].contact];
        assert!(contact.edge == 0 && contact.point.x.abs() < 8.0, "{contact:?}");
        assert!((plan.pushes[0].travel - 20.0).abs() < 3.0);
        assert!(plan.pushes[0].after.coverage(&home().origin) > SUCCESS_COVERAGE);
        assert!(plan.secs < 1.0, "it arrives, so no guess is added: {}", plan.secs);
    }

    #[test]
    fn a_plan_is_followed_from_where_its_first_push_has_led() {
        let planner = Planner::new();
        let pose = Pose::from_origin([150.0, 350.0, -2.0]);
        let plan = planner
            .plan(&planner.start(Vec2::new(300.0, 100.0), &pose, home()))
            .expect("the block is free");
        let first = plan.pushes[0];
        let contact = planner.contacts[first.contact];
        let half = contact.motion(first.travel / 2.0).apply(&pose);
        let start = planner.start(half.world_from_body(contact.agent(0.0)), &half, home());
        let rest = planner.follow(&plan, &start).expect("half of the push is left");
        assert_eq!(rest.pushes.len(), plan.pushes.len());
        assert!((rest.pushes[0].travel - first.travel / 2.0).abs() < 1.0);
        assert!(rest.secs < plan.secs);
        // At its end it is done, and the next one comes first.
        let start =
            planner.start(first.after.world_from_body(contact.agent(0.0)), &first.after, home());
        let rest = planner.follow(&plan, &start);
        assert_eq!(rest.map_or(0, |r| r.pushes.len()), plan.pushes.len() - 1);
    }

    #[test]
    fn no_plan_pushes_from_outside_the_arena() {
        let planner = Planner::new();
        // The bar's outer edge is flush with the upper wall: nobody can stand behind it.
        let pose = Pose::from_origin([256.0, 7.0, 0.0]);
        let plan = planner
            .plan(&planner.start(Vec2::new(256.0, 300.0), &pose, home()))
            .expect("the stem can be pushed");
        assert_ne!(planner.contacts[plan.pushes[0].contact].edge, 0);
    }

    #[test]
    fn an_escape_brings_a_flush_block_off_the_wall() {
        let planner = Planner::new();
        let pose = Pose::from_origin([256.0, 7.0, 0.0]);
        let escape = planner
            .escape(&planner.start(Vec2::new(256.0, 300.0), &pose, home()))
            .expect("the stem can be pushed");
        let after = escape.pushes[0].after;
        assert!(after.cog.y > pose.cog.y + 2.0, "{after:?}");
    }
}
