//! A step's model is unloaded under load, and loaded again.
use std::time::Duration;

use anyhow::{Result, ensure};
use seldon_e2e::eventually_async;

use crate::callers::{Callers, FIRST_KEY};
use crate::scene::{CALLS, Scene, small};

/// Longer than a model that may be on its way is waited for, and far from what callers would wait.
const SOON: Duration = Duration::from_secs(8);

#[tokio::main]
pub(crate) async fn away_and_back() -> Result<()> {
    let scene = Scene::new(small()).await?;
    let callers = scene.callers(FIRST_KEY, CALLS);
    for round in 0..3 {
        more_right(&callers, 20).await?;
        scene.fleet.unload("echo-2").await?;
        let before = callers.refused();
        let refused = async || {
            let refused = callers.refused() - before;
            ensure!(refused > 50, "only {refused} callers hear of it");
            Ok(())
        };
        eventually_async(20, refused).await?;
        // It is taken again as soon as the former one has ended.
        eventually_async(30, async || scene.models(&["echo-2"]).await).await?;
        more_right(&callers, 20).await?;
        println!("round {round}: {} refused so far", callers.refused());
    }
    let answers = callers.stop().await?;
    answers.tell("a step's model unloaded and loaded again");
    answers.honest()?;
    ensure!(answers.connection.is_empty(), "{:?}", answers.connection);
    ensure!(
        answers.slowest < SOON,
        "the slowest took {:?}",
        answers.slowest
    );
    let said = r#"{"error":"echo-2 : model echo-2 is not loaded: load it with seldon model load -f FILE"}"#;
    let other = answers
        .typed
        .keys()
        .find(|text| **text != format!("404 {said}"));
    ensure!(other.is_none(), "{:?}", answers.typed);
    Ok(())
}

async fn more_right(callers: &Callers, seconds: u64) -> Result<()> {
    let before = callers.right();
    let look = async || {
        let right = callers.right() - before;
        ensure!(right > 20, "only {right} more are answered");
        Ok(())
    };
    eventually_async(seconds, look).await
}
