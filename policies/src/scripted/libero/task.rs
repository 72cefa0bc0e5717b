//! Which object goes where, from the instruction.

use crate::PolicyError;

/// Where the object is put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// On top of this body (`On`: contact, less than 3 cm off centre).
    On(&'static str),
    /// Into this body, whose inside is this region (`In`: the object's origin in the region).
    In { body: &'static str, region: &'static str },
}

/// One pick and place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Task {
    /// The body to pick up.
    pub(super) target: String,
    pub(super) goal: Goal,
}

impl Task {
    /// Reads an instruction of `libero_spatial` or `libero_object`.
    pub(super) fn parse(instruction: &str) -> Result<Self, PolicyError> {
        let unsupported = || {
            PolicyError::UnsupportedTask {
            task: instruction.to_owned(),
            detail: "the scripted expert knows libero_spatial (`pick up the black bowl … and place it on the plate`) \
                     and libero_object (`pick up the … and place it in the basket`)"
                .to_owned(),
        }
        };
        let what = instruction.strip_prefix("pick up the ").ok_or_else(unsupported)?;
        if what.starts_with("black bowl ") && what.ends_with(" and place it on the plate") {
            // The second bowl of every scene is a distractor: all ten goals name the first.
            Ok(Self { target: "akita_black_bowl_1".to_owned(), goal: Goal::On("plate_1") })
        } else if let Some(object) = what.strip_suffix(" and place it in the basket") {
            Ok(Self {
                target: format!("{}_1", object.replace(' ', "_")),
                goal: Goal::In { body: "basket_1", region: "basket_1_contain_region" },
            })
        } else {
            Err(unsupported())
        }
    }

    /// The body that the object is put on or in.
    pub(super) fn goal_body(&self) -> &'static str {
        match self.goal {
            Goal::On(body) | Goal::In { body, .. } => body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instruction_names_target_and_goal() {
        let bowl =
            "pick up the black bowl between the plate and the ramekin and place it on the plate";
        let task = Task::parse(bowl).unwrap();
        assert_eq!((task.target.as_str(), task.goal), ("akita_black_bowl_1", Goal::On("plate_1")));
        let task = Task::parse("pick up the orange juice and place it in the basket").unwrap();
        assert_eq!((task.target.as_str(), task.goal_body()), ("orange_juice_1", "basket_1"));
    }

    #[test]
    fn other_suites_are_refused_with_what_is_supported() {
        for instruction in [
            "put the bowl on the plate",
            "open the middle drawer of the cabinet",
            "pick up the book and place it in the back compartment of the caddy",
            "put both the alphabet soup and the tomato sauce in the basket",
            "pick up the alphabet soup and put it in the basket",
        ] {
            let message = Task::parse(instruction).unwrap_err().to_string();
            assert!(
                message.contains(instruction) && message.contains("libero_object"),
                "{message}"
            );
        }
    }
}
