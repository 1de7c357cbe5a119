//! The broker does nothing for half a minute.
use std::time::Duration;

use anyhow::Result;
use seldon_local::{Component::Broker, Signal};
use tokio::time::sleep;

use crate::callers::FIRST_KEY;
use crate::processes::Costs;
use crate::scene::{CALLS, Scene, small};

const AWAY: Duration = Duration::from_secs(30);
const RATE: f64 = 300.0;
/// What a process may need more while it waits, and after: 30 s of requests are a few megabytes.
const MORE_KB: u64 = 64 << 10;

/// Stopped, it answers nobody and refuses nobody; killed, it refuses.
#[tokio::main]
pub(crate) async fn broker_away(signal: Signal) -> Result<()> {
    let scene = Scene::new(small()).await?;
    let system = &scene.fleet.system;
    let load = scene.load((RATE * 36.0) as i64, RATE, false).await?;
    sleep(Duration::from_secs(2)).await;
    let before = Costs::of(system)?;
    system.kill(Broker, signal)?;
    sleep(AWAY).await;
    let during = Costs::of(system)?;
    if signal == Signal::SIGSTOP {
        system.kill(Broker, Signal::SIGCONT)?;
    } else {
        system.stop_one(Broker).await;
        system.start_one(Broker)?;
        system.wait_one(Broker, Duration::from_secs(20)).await?;
    }
    let back = std::time::Instant::now();
    let answered = async || {
        let callers = scene.calling(crate::scene::PIPELINE, FIRST_KEY + 1, 1.0);
        callers.one_right().await
    };
    seldon_e2e::eventually_async(20, answered).await?;
    println!(
        "a caller is answered {:.1} s after the broker is back",
        back.elapsed().as_secs_f32()
    );
    let what = format!("broker away for {} s ({signal})", AWAY.as_secs());
    load.survived(&what, 40).await?;
    let callers = scene.callers(FIRST_KEY + 2, CALLS);
    sleep(Duration::from_secs(2)).await;
    let answers = callers.stop().await?;
    answers.tell("afterwards");
    answers.all_right()?;
    let after = Costs::of(system)?;
    println!("before: {before}\nduring: {during}\nafter: {after}");
    during.bounded(&before, MORE_KB)?;
    after.bounded(&before, MORE_KB)
}
