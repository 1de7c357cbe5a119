//! What of a pipeline is to be shown: `p`, `p.inputs`, `p.step`, `p.step.outputs`, `p.step.outputs.tensor`.
use anyhow::{Result, bail};
use seldon_records::Topic;

/// One side of a model or pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Inputs,
    Outputs,
}

impl Side {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "inputs" => Some(Self::Inputs),
            "outputs" => Some(Self::Outputs),
            _ => None,
        }
    }
}

/// A part of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expression {
    pub(super) pipeline: String,
    step: Option<String>,
    side: Option<Side>,
    /// Only this tensor.
    pub(super) tensor: Option<String>,
}

impl Expression {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('.').collect();
        let (step, side, tensor) = match parts[1..] {
            [] => (None, None, None),
            [one] => match Side::parse(one) {
                Some(side) => (None, Some(side), None),
                None => (Some(one), None, None),
            },
            [first, second] => match (Side::parse(first), Side::parse(second)) {
                (Some(side), _) => (None, Some(side), Some(second)),
                (None, Some(side)) => (Some(first), Some(side), None),
                (None, None) => bail!(unknown(text)),
            },
            [step, side, tensor] => match Side::parse(side) {
                Some(side) => (Some(step), Some(side), Some(tensor)),
                None => bail!(unknown(text)),
            },
            _ => bail!(unknown(text)),
        };
        let named = [Some(parts[0]), step, tensor];
        if named.into_iter().flatten().any(str::is_empty) {
            bail!(unknown(text));
        }
        Ok(Self {
            pipeline: parts[0].to_owned(),
            step: step.map(str::to_owned),
            side,
            tensor: tensor.map(str::to_owned),
        })
    }

    /// The topics to read, in the documented order: each step's, then the pipeline's, then errors.
    pub(super) fn topics(&self, steps: &[String]) -> Result<Vec<Topic>> {
        let sides = match self.side {
            Some(side) => vec![side],
            None => vec![Side::Inputs, Side::Outputs],
        };
        if let Some(step) = &self.step {
            if !steps.contains(step) {
                bail!(
                    "pipeline {} has no step {step}: its steps are {}",
                    self.pipeline,
                    steps.join(", ")
                );
            }
            return Ok(sides.iter().map(|side| of_model(step, *side)).collect());
        }
        let mut topics = Vec::new();
        if self.side.is_none() {
            let every = steps
                .iter()
                .flat_map(|step| sides.iter().map(|side| of_model(step, *side)));
            topics.extend(every);
        }
        topics.extend(sides.iter().map(|side| match side {
            Side::Inputs => Topic::PipelineInputs(self.pipeline.clone()),
            Side::Outputs => Topic::PipelineOutputs(self.pipeline.clone()),
        }));
        if self.side.is_none() {
            topics.push(Topic::Errors);
        }
        Ok(topics)
    }
}

fn of_model(step: &str, side: Side) -> Topic {
    match side {
        Side::Inputs => Topic::ModelInputs(step.to_owned()),
        Side::Outputs => Topic::ModelOutputs(step.to_owned()),
    }
}

fn unknown(text: &str) -> String {
    format!(
        "{text:?} names no part of a pipeline: write <pipeline>, <pipeline>.inputs, <pipeline>.<step>, \
         <pipeline>.<step>.outputs or <pipeline>.<step>.outputs.<tensor>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_forms() {
        let steps = ["a".to_owned(), "b".to_owned()];
        let count = |text: &str| {
            Expression::parse(text)
                .expect(text)
                .topics(&steps)
                .expect(text)
                .len()
        };
        assert_eq!(count("p"), 7);
        assert_eq!(count("p.inputs"), 1);
        assert_eq!(count("p.a"), 2);
        assert_eq!(count("p.a.outputs"), 1);
        let one = Expression::parse("p.a.outputs.x").expect("a documented form");
        assert_eq!(one.tensor.as_deref(), Some("x"));
        assert_eq!(
            one.topics(&steps).expect("a step"),
            [Topic::ModelOutputs("a".to_owned())]
        );
        for wrong in [
            "",
            "p.",
            "p.a.b",
            "p.a.b.c",
            "p.a.outputs.x.y",
            "p..outputs",
        ] {
            assert!(Expression::parse(wrong).is_err(), "{wrong}");
        }
        assert!(
            Expression::parse("p.c")
                .expect("a form")
                .topics(&steps)
                .is_err()
        );
    }
}
