//! Shares by weight, and requests that stay with a candidate.
use anyhow::{Result, ensure};
use seldon_e2e::eventually_async;
use seldon_e2e::faults::{Fleet, experiment, model};
use seldon_proto::scheduler::model_status::ModelState::ModelAvailable;

use crate::scene::{self, Case, ask, grpc, models, rest, send, shares, with};

pub(crate) const CASES: &[Case] = &[
    ("splits::shares_are_those_of_the_weights", |stages| {
        stages.fleet(weights)
    }),
    ("splits::sticky_requests_stay", |stages| {
        stages.fleet(sticky)
    }),
    ("splits::what_no_candidate_fits_is_split", |stages| {
        stages.fleet(foreign)
    }),
    (
        "splits::a_candidate_in_roll_out_answers_with_both",
        |stages| stages.fleet(versions),
    ),
];

async fn weights(fleet: &Fleet) -> Result<()> {
    models(fleet, &["wa", "wb", "wc"], 2).await?;
    let split = [("wa", 61), ("wb", 29), ("wc", 10)];
    let routes = [(":wa_1:", 61), (":wb_1:", 29), (":wc_1:", 10)];
    fleet
        .run_experiment(experiment("w", Some("wa"), &split))
        .await?;
    for (what, shot, count) in [
        ("the default by REST", rest("wa"), 10_000),
        ("the default by gRPC", grpc("wa"), 3_000),
        ("the experiment by REST", rest("w.experiment"), 3_000),
        ("the experiment by gRPC", grpc("w.experiment"), 10_000),
    ] {
        let report = send(fleet, vec![shot], count).await?;
        println!(
            "{what}: {:?}, {:.0} a second",
            report.routes,
            report.per_second()
        );
        shares(&report, &routes)?;
    }
    // Without the header: the path and the message name it.
    let bare = |mut shot: scene::Shot| {
        shot.headers.remove("seldon-model");
        shot
    };
    let shots = ["wa", "w.experiment"].map(|name| [bare(rest(name)), bare(grpc(name))]);
    let report = send(fleet, shots.concat(), 2_000).await?;
    shares(&report, &routes)?;
    // Candidates keep their own names, unsplit.
    let report = send(fleet, vec![rest("wb"), grpc("wb")], 100).await?;
    ensure!(
        report.routes.len() == 1 && report.routes.contains_key(":wb_1:"),
        "{:?}",
        report.routes
    );
    // Any weights, not only those of a hundred: the sum does not fit into 32 bits.
    let large = [("wa", u32::MAX), ("wb", u32::MAX), ("wc", u32::MAX / 2)];
    fleet
        .run_experiment(experiment("w", Some("wa"), &large))
        .await?;
    let report = send(fleet, vec![rest("wa"), grpc("w.experiment")], 5_000).await?;
    shares(&report, &[(":wa_1:", 2), (":wb_1:", 2), (":wc_1:", 1)])?;
    fleet.stop_experiment("w").await
}

async fn sticky(fleet: &Fleet) -> Result<()> {
    models(fleet, &["sa", "sb", "sc"], 2).await?;
    // Whatever the weight: one percent, and none at all.
    let split = [("sa", 99), ("sb", 1), ("sc", 0)];
    fleet
        .run_experiment(experiment("s", Some("sa"), &split))
        .await?;
    for (route, header) in [
        (":sb_1:", ":sb_1:"),
        (":sc_1:", ":sc_1:"),
        (":sa_1:", ":sa_1:"),
        // Several joined, as pipelines and clients do; who is not of the experiment is passed over.
        (":sb_1:", ":elsewhere_3::sb_1:"),
        (":sb_1:", ":sb_1::p.pipeline:"),
        (":sc_1:", ":sc_1:,:sc_1:"),
        (":sc_1:", ":elsewhere_1:, :sc_1:"),
    ] {
        for name in ["sa", "s.experiment"] {
            let shots = vec![
                with(rest(name), "x-seldon-route", header)?,
                with(grpc(name), "x-seldon-route", header)?,
            ];
            let count = if header == route { 1_000 } else { 100 };
            let report = send(fleet, shots, count).await?;
            ensure!(
                report.routes.len() == 1 && report.routes.contains_key(route),
                "{header} for {name}: {:?}",
                report.routes
            );
        }
    }
    // As several headers.
    let twice = with(rest("sa"), "x-seldon-route", ":elsewhere_1:")?;
    let report = send(fleet, vec![with(twice, "x-seldon-route", ":sc_1:")?], 100).await?;
    ensure!(
        report.routes.len() == 1 && report.routes.contains_key(":sc_1:"),
        "several headers: {:?}",
        report.routes
    );
    fleet.stop_experiment("s").await
}

async fn foreign(fleet: &Fleet) -> Result<()> {
    models(fleet, &["fa", "fb"], 2).await?;
    fleet
        .run_experiment(experiment("f", Some("fa"), &[("fa", 50), ("fb", 50)]))
        .await?;
    let long = ":x_1:".repeat(12_000);
    for header in [
        "",
        ":",
        "::",
        ":::::",
        ":fb_2:",
        ":fb_0:",
        ":fb_1",
        "fb_1:",
        "fb_1",
        ":FB_1:",
        ":fb_01:",
        ":fb_1 :",
        ":fb:",
        ":i:fb_1",
        ":fb_99999999999999999999:",
        ":other_1:",
        ":p.pipeline:",
        "\u{fffd}\u{1f980}",
        "%3Afb_1%3A",
        &long,
    ] {
        let mut shots = Vec::new();
        for name in ["fa", "f.experiment"] {
            for mut shot in [rest(name), grpc(name)] {
                let value = http::HeaderValue::from_bytes(header.as_bytes())?;
                shot.headers.append("x-seldon-route", value);
                shots.push(shot);
            }
        }
        let report = send(fleet, shots, 200).await?;
        let shown: String = header.chars().take(30).collect();
        println!("x-seldon-route {shown:?}: {:?}", report.routes);
        shares(&report, &[(":fa_1:", 1), (":fb_1:", 1)])?;
    }
    // Nor does it harm where no experiment is.
    let plain = [rest("fb"), grpc("fb")].map(|shot| with(shot, "x-seldon-route", &long));
    send(fleet, plain.into_iter().collect::<Result<_>>()?, 100).await?;
    // Bytes that are no text.
    let mut raw = rest("fa");
    raw.headers.append(
        "x-seldon-route",
        http::HeaderValue::from_bytes(&[0x80, 0xff, b':', b'f'])?,
    );
    shares(
        &send(fleet, vec![raw], 200).await?,
        &[(":fa_1:", 1), (":fb_1:", 1)],
    )?;
    // After the end nobody is held to it.
    fleet.stop_experiment("f").await?;
    eventually_async(10, async || {
        let answer = ask("fa")
            .header("x-seldon-route", ":fb_1:")
            .send(fleet.system.ports().envoys[0].data)?;
        ensure!(
            answer.status == 200 && answer.field("x-seldon-route") == ":fa_1:",
            "{answer:?}"
        );
        Ok(())
    })
    .await
}

/// A new version that comes to the second replica much later than to the first: until then both versions answer for the
/// candidate, each by its replicas.
async fn versions(fleet: &Fleet) -> Result<()> {
    models(fleet, &["va", "late-vb"], 2).await?;
    fleet
        .run_experiment(experiment("v", Some("va"), &[("va", 50), ("late-vb", 50)]))
        .await?;
    let before = send(fleet, vec![rest("va")], 200).await?;
    shares(&before, &[(":va_1:", 1), (":late-vb_1:", 1)])?;
    let load = scene::steady(fleet, vec![rest("va"), grpc("v.experiment")], 200.0)?;
    fleet.load(model("late-vb", 2000, 2)).await?;
    // Who names a version gets that one, as long as it answers.
    let mut both = 0;
    let after = eventually_async(15, async || {
        let all = send(fleet, vec![rest("va"), grpc("va")], 60).await?;
        if all.routes.len() == 3 {
            for version in [":late-vb_1:", ":late-vb_2:"] {
                let named = with(rest("va"), "x-seldon-route", version)?;
                let report = send(fleet, vec![named], 40).await?;
                let kept = report.routes.len() == 1 && report.routes.contains_key(version);
                both += usize::from(kept);
            }
        }
        ensure!(!all.routes.contains_key(":late-vb_1:"), "{:?}", all.routes);
        Ok(all)
    })
    .await?;
    ensure!(
        both >= 2,
        "both versions were seen to answer only {both} times"
    );
    fleet.reaches("late-vb", ModelAvailable, 2, 20).await?;
    shares(&after, &[(":va_1:", 1), (":late-vb_2:", 1)])?;
    let report = scene::lossless(load, "a new version of a candidate").await?;
    let of = |route: &str| report.routes.get(route).copied().unwrap_or(0);
    let (va, vb) = (of(":va_1:"), of(":late-vb_1:") + of(":late-vb_2:"));
    ensure!(
        of(":late-vb_1:") > 0 && of(":late-vb_2:") > 0,
        "{:?}",
        report.routes
    );
    let expected = (va + vb) as f64 / 2.0;
    ensure!(
        (va as f64 - expected).abs() < 5.0 * expected.sqrt(),
        "{:?}",
        report.routes
    );
    // The version of before is no one to stay with.
    let stale = with(rest("va"), "x-seldon-route", ":late-vb_1:")?;
    shares(
        &send(fleet, vec![stale], 200).await?,
        &[(":va_1:", 1), (":late-vb_2:", 1)],
    )?;
    let named = with(rest("va"), "x-seldon-route", ":late-vb_2:")?;
    let report = send(fleet, vec![named], 100).await?;
    ensure!(
        report.routes.len() == 1 && report.routes.contains_key(":late-vb_2:"),
        "{:?}",
        report.routes
    );
    fleet.stop_experiment("v").await
}
