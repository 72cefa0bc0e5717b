//! The five suites and the names of their tasks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::EnvError;

/// Stored initial states per task, in every suite (LIBERO `init_files/*/*.pruned_init`).
pub const INIT_STATES: u32 = 50;

/// A suite of LIBERO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Suite {
    /// Where the bowl stands differs.
    #[serde(rename = "libero_spatial")]
    Spatial,
    /// Which object goes into the basket differs.
    #[serde(rename = "libero_object")]
    Object,
    /// What is to be done in one scene differs.
    #[serde(rename = "libero_goal")]
    Goal,
    /// Ten long tasks of two parts each.
    #[serde(rename = "libero_10")]
    Long,
    /// Ninety short tasks.
    #[serde(rename = "libero_90")]
    Ninety,
}

impl Suite {
    /// All suites.
    pub const ALL: [Self; 5] = [Self::Spatial, Self::Object, Self::Goal, Self::Long, Self::Ninety];

    /// LIBERO's own name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spatial => "libero_spatial",
            Self::Object => "libero_object",
            Self::Goal => "libero_goal",
            Self::Long => "libero_10",
            Self::Ninety => "libero_90",
        }
    }

    /// The number of tasks.
    pub fn tasks(self) -> u32 {
        if self == Self::Ninety { 90 } else { 10 }
    }

    /// The key of a task, `libero_spatial/3`: an index into LIBERO's task order 0.
    ///
    /// # Errors
    /// [`EnvError::Config`] for an index that the suite does not have.
    pub fn task(self, index: u32) -> Result<String, EnvError> {
        if index < self.tasks() {
            return Ok(format!("{}/{index}", self.name()));
        }
        Err(EnvError::Config {
            detail: format!("{} has tasks 0 to {}, not {index}", self.name(), self.tasks() - 1),
        })
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Suite {
    type Err = EnvError;

    /// LIBERO's name or its last part: `libero_spatial`, `spatial`; `long` for `10`.
    fn from_str(text: &str) -> Result<Self, EnvError> {
        let short = text.strip_prefix("libero_").unwrap_or(text);
        match short {
            "spatial" => Ok(Self::Spatial),
            "object" => Ok(Self::Object),
            "goal" => Ok(Self::Goal),
            "10" | "long" => Ok(Self::Long),
            "90" => Ok(Self::Ninety),
            _ => Err(EnvError::Config {
                detail: format!(
                    "there is no LIBERO suite `{text}`; choose spatial, object, goal, 10 or 90"
                ),
            }),
        }
    }
}

/// The suite and index of a task key.
///
/// # Errors
/// [`EnvError::Config`] unless it reads `<suite>/<index>` with an index that the suite has.
pub fn parse_task(key: &str) -> Result<(Suite, u32), EnvError> {
    let Some((suite, index)) = key.rsplit_once('/') else {
        return Err(EnvError::Config {
            detail: format!("task `{key}` does not read <suite>/<index>, e.g. libero_spatial/3"),
        });
    };
    let suite: Suite = suite.parse()?;
    let index: u32 = index.parse().map_err(|_| EnvError::Config {
        detail: format!("task `{key}`: `{index}` is no task index"),
    })?;
    suite.task(index)?;
    Ok((suite, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alias_finds_its_suite() {
        for (alias, suite) in [
            ("spatial", Suite::Spatial),
            ("libero_object", Suite::Object),
            ("goal", Suite::Goal),
            ("10", Suite::Long),
            ("long", Suite::Long),
            ("libero_90", Suite::Ninety),
        ] {
            assert_eq!(alias.parse::<Suite>().unwrap(), suite);
        }
        let error = "spacial".parse::<Suite>().unwrap_err().to_string();
        assert!(error.contains("spatial, object, goal, 10 or 90"), "{error}");
    }

    #[test]
    fn a_task_key_names_a_task_that_exists() {
        assert_eq!(parse_task("libero_90/89").unwrap(), (Suite::Ninety, 89));
        assert_eq!(Suite::Goal.task(9).unwrap(), "libero_goal/9");
        for wrong in ["libero_goal/10", "libero_goal", "goal/x", "goal/-1"] {
            assert!(parse_task(wrong).is_err(), "{wrong}");
        }
    }
}
