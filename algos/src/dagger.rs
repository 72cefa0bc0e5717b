//! DAgger: the expert labels the states that the learner gets into (Ross, Gordon and Bagnell 2011, arXiv 1011.0686).
//!
//! Learning itself is behaviour cloning ([`crate::bc`]) of everything collected so far; this module says who acts when.
//!
//! # Details
//!
//! 1. In iteration `i` the expert acts with probability `β_i`; the paper's `β_i = p^i` begins with plain demonstrations.
//! 2. [`Labels::Visited`] is the paper's form: at every state the expert is asked, whoever acts. It needs a learner that
//!    decides at every step on one action, because an expert knows one action at a state and not a chunk.
//! 3. [`Labels::Takeover`] is for chunks, after HG-DAgger (Kelly et al. 2019, arXiv 1810.02890): the learner drives for a
//!    while, then the expert takes over until the end, and what it does from there on is the label: whole chunks from
//!    states that the learner caused. Instead of a person's judgement a uniform draw decides when; with probability `β_i`
//!    the expert has the whole episode.
//! 4. Who acts is a function of the episode's noise alone.

use rand::Rng as _;
use serde::{Deserialize, Serialize};
use simloop_envs::SeedTree;

use crate::AlgoError;

/// How often the expert acts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Beta {
    /// `p^i`.
    Exponential {
        /// `p`.
        base: f64,
    },
    /// From 1 down to 0 over so many iterations.
    Linear {
        /// Iterations until 0.
        iterations: u32,
    },
    /// Always the same after the first iteration, which is the expert's.
    Constant {
        /// The probability.
        beta: f64,
    },
}

impl Default for Beta {
    /// The paper's indicator schedule, which it found to work best: the expert's iteration, then the learner's.
    fn default() -> Self {
        Self::Constant { beta: 0.0 }
    }
}

impl Beta {
    /// `β_i`; `β_0 = 1`.
    pub fn at(&self, iteration: u32) -> f64 {
        match *self {
            _ if iteration == 0 => 1.0,
            Self::Exponential { base } => base.powf(f64::from(iteration)),
            Self::Linear { iterations } => {
                (1.0 - f64::from(iteration) / f64::from(iterations.max(1))).max(0.0)
            }
            Self::Constant { beta } => beta,
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`AlgoError::Range`] for a probability outside `[0, 1]`.
    pub fn validate(&self) -> Result<(), AlgoError> {
        let got = match *self {
            Self::Exponential { base } => base,
            Self::Constant { beta } => beta,
            Self::Linear { .. } => return Ok(()),
        };
        if (0.0..=1.0).contains(&got) {
            return Ok(());
        }
        Err(AlgoError::Range { what: "beta", got, range: "[0, 1]" })
    }
}

/// Which states get labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// Those after the expert took over.
    #[default]
    Takeover,
    /// All.
    Visited,
}

/// Who acts in one episode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turns {
    labels: Labels,
    beta: f64,
    /// The decision from which on the expert acts.
    takeover: u32,
    node: SeedTree,
}

impl Turns {
    /// In the episode whose noise is `noise`, in an iteration of probability `beta`; the expert takes over after at most
    /// `max_lead` decisions of the learner.
    pub fn new(labels: Labels, beta: f64, max_lead: u32, noise: &SeedTree) -> Self {
        let node = noise.child("turns");
        let mut rng = node.rng();
        let whole = rng.random::<f64>() < beta;
        let takeover = if whole { 0 } else { rng.random_range(1..=max_lead.max(1)) };
        Self { labels, beta, takeover, node }
    }

    /// Whether the expert makes decision number `decision`.
    pub fn expert_acts(&self, decision: u32) -> bool {
        match self.labels {
            Labels::Takeover => decision >= self.takeover,
            Labels::Visited => {
                self.node.index(u64::from(decision)).rng().random::<f64>() < self.beta
            }
        }
    }

    /// Whether the expert's label for decision number `decision` is kept.
    pub fn keeps(&self, decision: u32) -> bool {
        self.labels == Labels::Visited || self.expert_acts(decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_begin_with_the_expert_and_fall() {
        for beta in [
            Beta::Exponential { base: 0.5 },
            Beta::Linear { iterations: 4 },
            Beta::Constant { beta: 0.1 },
        ] {
            assert_eq!(beta.at(0), 1.0);
            let row: Vec<f64> = (0..6).map(|i| beta.at(i)).collect();
            assert!(row.windows(2).all(|w| w[1] <= w[0]), "{row:?}");
        }
        assert_eq!(Beta::Exponential { base: 0.5 }.at(2), 0.25);
        assert_eq!(Beta::Linear { iterations: 4 }.at(9), 0.0);
        assert!(Beta::Constant { beta: 1.5 }.validate().is_err());
    }

    #[test]
    fn the_expert_takes_over_once_and_stays() {
        let root = SeedTree::new(3);
        let mut leads = std::collections::BTreeSet::new();
        for episode in 0..200 {
            let turns = Turns::new(Labels::Takeover, 0.0, 5, &root.index(episode));
            let who: Vec<bool> = (0..8).map(|d| turns.expert_acts(d)).collect();
            assert!(!who[0] && who[5], "{who:?}");
            assert!(who.windows(2).all(|w| w[1] >= w[0]), "{who:?}");
            leads.insert(who.iter().filter(|e| !**e).count());
        }
        assert_eq!(leads.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        let all = Turns::new(Labels::Takeover, 1.0, 5, &root);
        assert!(all.expert_acts(0) && all.keeps(0));
    }

    #[test]
    fn visited_states_are_all_labelled_and_beta_is_the_share_of_the_expert() {
        let turns = Turns::new(Labels::Visited, 0.25, 5, &SeedTree::new(1));
        let acts = (0..4000).filter(|d| turns.expert_acts(*d)).count() as f64 / 4000.0;
        assert!((acts - 0.25).abs() < 0.03, "{acts}");
        assert!((0..100).all(|d| turns.keeps(d)));
    }
}
