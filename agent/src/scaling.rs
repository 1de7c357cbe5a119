//! When a model has too many requests in flight, or none for long: what the scheduler is told, which decides.
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What a model's requests are compared with.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    /// Requests in flight from which on a model has too many.
    pub lag: u32,
    /// A model that was not asked for so long is not needed here.
    pub inactive: Duration,
}

/// A model whose requests are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    pub name: String,
    pub version: u32,
    /// Those that wait for their turn or for the model included.
    pub in_flight: u32,
    /// How long it has not been asked; nothing while it is.
    pub idle: Duration,
    /// It is to be out of memory until it is asked for; whether it was.
    pub resting: bool,
    pub asked: bool,
}

/// A threshold that was crossed, and by how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crossed {
    pub name: String,
    pub version: u32,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// So many requests in flight.
    TooMany(u32),
    /// It was to rest and was asked for; so many requests are in flight.
    Woken(u32),
    /// Not asked for so long.
    Inactive(Duration),
}

/// Remembers of which models it was said already that nobody asks for them.
#[derive(Debug, Default)]
pub struct Analyst {
    told: HashMap<(String, u32), Instant>,
}

impl Analyst {
    /// Looks at all watched models. That one has too many requests, or does not rest, is said each time, as long as it is
    /// so; that one is inactive once in each span of inactivity, because the scheduler takes one replica away for each time.
    pub fn look(
        &mut self,
        models: Vec<Watched>,
        thresholds: &Thresholds,
        now: Instant,
    ) -> Vec<Crossed> {
        let mut crossed = Vec::new();
        let mut told = HashMap::new();
        for model in models {
            let key = (model.name, model.version);
            let kind = if model.asked {
                Kind::Woken(model.in_flight)
            } else if model.resting {
                continue;
            } else if model.in_flight >= thresholds.lag.max(1) {
                Kind::TooMany(model.in_flight)
            } else if model.idle >= thresholds.inactive {
                let before = self.told.get(&key).copied();
                let fresh = before.filter(|at| now.duration_since(*at) < thresholds.inactive);
                told.insert(key.clone(), fresh.unwrap_or(now));
                if fresh.is_some() {
                    continue;
                }
                Kind::Inactive(model.idle)
            } else {
                continue;
            };
            let (name, version) = key;
            crossed.push(Crossed {
                name,
                version,
                kind,
            });
        }
        self.told = told;
        crossed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds {
        lag: 30,
        inactive: Duration::from_secs(60),
    };

    fn watched(in_flight: u32, idle: u64) -> Vec<Watched> {
        vec![Watched {
            name: "iris".into(),
            version: 1,
            in_flight,
            idle: Duration::from_secs(idle),
            resting: false,
            asked: false,
        }]
    }

    fn kinds(crossed: &[Crossed]) -> Vec<Kind> {
        crossed.iter().map(|crossed| crossed.kind).collect()
    }

    #[test]
    fn too_many_is_said_as_long_as_it_is_so() {
        let mut analyst = Analyst::default();
        let now = Instant::now();
        for (in_flight, expected) in [
            (29, vec![]),
            (30, vec![Kind::TooMany(30)]),
            (99, vec![Kind::TooMany(99)]),
        ] {
            let crossed = analyst.look(watched(in_flight, 0), &THRESHOLDS, now);
            assert_eq!(kinds(&crossed), expected);
        }
    }

    #[test]
    fn inactivity_is_said_once_in_its_span_and_anew_after_a_request() {
        let mut analyst = Analyst::default();
        let start = Instant::now();
        let mut at = |seconds: u64, idle: u64| {
            let now = start + Duration::from_secs(seconds);
            kinds(&analyst.look(watched(0, idle), &THRESHOLDS, now)).len()
        };
        assert_eq!(at(0, 59), 0);
        assert_eq!(at(1, 60), 1);
        assert_eq!(at(5, 64), 0);
        assert_eq!(at(61, 120), 1, "another replica may go");
        assert_eq!(at(62, 0), 0, "it was asked");
        assert_eq!(at(122, 60), 1);
    }

    #[test]
    fn a_model_at_rest_is_spoken_of_when_it_is_asked_for() {
        let look = |asked| {
            let mut models = watched(40, 90);
            (models[0].resting, models[0].asked) = (true, asked);
            kinds(&Analyst::default().look(models, &THRESHOLDS, Instant::now()))
        };
        assert_eq!(look(false), []);
        assert_eq!(look(true), [Kind::Woken(40)]);
    }

    #[test]
    fn a_threshold_of_nothing_does_not_scale_idle_models_up() {
        let none = Thresholds {
            lag: 0,
            ..THRESHOLDS
        };
        let crossed = Analyst::default().look(watched(0, 1), &none, Instant::now());
        assert!(crossed.is_empty());
    }
}
