//! The processes of a local system, by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One process. Agents and inference servers come in pairs of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Component {
    Scheduler,
    MlServer(usize),
    Agent(usize),
    Envoy(usize),
}

impl Component {
    /// Lists the processes of a system.
    pub fn all(replicas: usize, envoys: usize) -> Vec<Self> {
        let mut all = vec![Self::Scheduler];
        all.extend((0..replicas).flat_map(|index| [Self::MlServer(index), Self::Agent(index)]));
        all.extend((0..envoys).map(Self::Envoy));
        all
    }
}

impl fmt::Display for Component {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheduler => write!(to, "scheduler"),
            Self::MlServer(index) => write!(to, "mlserver-{index}"),
            Self::Agent(index) => write!(to, "agent-{index}"),
            Self::Envoy(index) => write!(to, "envoy-{index}"),
        }
    }
}

impl FromStr for Component {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, index) = text.split_once('-').unwrap_or((text, "0"));
        let index = index.parse().ok();
        match (kind, index) {
            ("scheduler", Some(0)) => Ok(Self::Scheduler),
            ("mlserver", Some(index)) => Ok(Self::MlServer(index)),
            ("agent", Some(index)) => Ok(Self::Agent(index)),
            ("envoy", Some(index)) => Ok(Self::Envoy(index)),
            _ => Err(format!(
                "no component {text}: name scheduler, envoy-0, agent-0, mlserver-0, …"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for component in Component::all(3, 2) {
            assert_eq!(component.to_string().parse(), Ok(component));
        }
        assert_eq!("envoy".parse(), Ok(Component::Envoy(0)));
        assert!("kafka".parse::<Component>().is_err());
    }
}
