//! What the end-to-end tests share: one running system, real clients, transcripts of documented commands.
//!
//! A test binary has no harness of its own (`harness = false`): [`run`] starts the system once, runs every case against
//! it, two at a time, and stops it. Each case uses names of its own.

mod certificates;
mod command;
mod documented;
pub mod faults;
mod grpc;
mod http;
mod inspected;
mod json;
mod models;
mod running;
mod transcript;
mod wait;

pub use certificates::Certificates;
pub use command::Done;
pub use documented::play_alone;
pub use grpc::{FramedAnswer, framed, message_frame};
pub use http::{Answer, Ask};
pub use json::{Rule, differences};
pub use models::{Loaded, Spec};
pub use running::{Running, root};
pub use transcript::Transcript;
pub use wait::{eventually, eventually_async};

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

/// One case: its name and what it does with the running system.
pub type Case = (&'static str, fn(&Running) -> Result<()>);

/// Starts the system, runs the cases against it, two at a time, and stops it.
pub fn run(start: impl Fn() -> Result<Running>, cases: &[Case]) -> ExitCode {
    run_on(|_| 1, start, cases)
}

/// As [`run`], with a system for each case of those that run at a time: for cases that use the same names, and mostly wait.
pub fn run_apart(start: impl Fn() -> Result<Running>, cases: &[Case]) -> ExitCode {
    run_on(|at_a_time| at_a_time, start, cases)
}

fn run_on(
    systems: impl Fn(usize) -> usize,
    start: impl Fn() -> Result<Running>,
    cases: &[Case],
) -> ExitCode {
    let mut arguments = Arguments::from_args();
    let wanted = cases.iter();
    let wanted = wanted
        .filter(|(name, _)| selected(&arguments, name))
        .count();
    // Nothing is started to list names, or for a filter that fits none of them.
    if arguments.list || wanted == 0 {
        let trials = cases
            .iter()
            .map(|(name, _)| Trial::test(*name, || Ok(())))
            .collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let at_a_time = arguments.test_threads.unwrap_or(2).min(wanted);
    arguments.test_threads = Some(at_a_time);
    let begin = Instant::now();
    let started: Result<Vec<_>> = (0..systems(at_a_time))
        .map(|_| start().map(Arc::new))
        .collect();
    let systems = match started {
        Ok(systems) => systems,
        Err(error) => {
            eprintln!("the system did not start: {}", chain(&error));
            return ExitCode::FAILURE;
        }
    };
    eprintln!(
        "the system started in {:.1} s",
        begin.elapsed().as_secs_f32()
    );
    let places = systems.iter().cycle().take(at_a_time).cloned();
    let free = Arc::new(Mutex::new(places.collect::<Vec<_>>()));
    let trials = in_order(cases)
        .into_iter()
        .map(|(name, case)| {
            let free = free.clone();
            Trial::test(name, move || {
                let begin = Instant::now();
                let place = Place::take(&free)?;
                let result = case(&place.running).map_err(|error| Failed::from(chain(&error)));
                eprintln!("{name}: {:.1} s", begin.elapsed().as_secs_f32());
                result
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(free);
    for running in systems.into_iter().filter_map(Arc::into_inner) {
        running.stop(conclusion.has_failed());
    }
    conclusion.exit_code()
}

type Places = Mutex<Vec<Arc<Running>>>;

/// A case's place at a system, free again when it ends, however it ends.
struct Place<'a> {
    running: Arc<Running>,
    free: &'a Places,
}

impl<'a> Place<'a> {
    /// There are as many as run at a time.
    fn take(free: &'a Places) -> Result<Self, Failed> {
        let running = lock(free).pop().ok_or("no system is free")?;
        Ok(Self { running, free })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(self.free).push(self.running.clone());
    }
}

fn lock(places: &Places) -> MutexGuard<'_, Vec<Arc<Running>>> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The cases as they are, or where the variables `E2E_ORDER` and `E2E_ROUNDS` have numbers, in another order and more than
/// once: to see that none leans on another.
fn in_order(cases: &[Case]) -> Vec<Case> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let rounds = number("E2E_ROUNDS").unwrap_or(1);
    let mut all = Vec::new();
    for round in 0..rounds {
        all.extend(cases.iter().map(|case| (round, *case)));
    }
    if let Some(order) = number("E2E_ORDER") {
        all.sort_by_key(|(round, (name, _))| {
            let mut hasher = DefaultHasher::new();
            (order, *round, *name).hash(&mut hasher);
            hasher.finish()
        });
    }
    all.into_iter().map(|(_, case)| case).collect()
}

fn selected(arguments: &Arguments, name: &str) -> bool {
    let fits = |filter: &str| {
        if arguments.exact {
            name == filter
        } else {
            name.contains(filter)
        }
    };
    arguments.filter.as_deref().is_none_or(fits) && !arguments.skip.iter().any(|skip| fits(skip))
}

/// The error and its causes, without the backtrace that `{:?}` would print.
fn chain(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    causes.join("\n  because: ")
}
