//! No header and no message of a client leads to another model, version or cluster than the one it may name.
use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use seldon_e2e::{Ask, Case, Loaded, Running, Spec, framed, message_frame};
use seldon_proto::inference as pb;

use crate::metrics;
use crate::protocol::{INFER, IRIS, iris};

pub const CASES: &[Case] = &[("forged::headers", headers), ("forged::messages", messages)];

/// Everything with which a client might try to name `target`, as headers beside an honest request.
fn attempts(target: &str) -> Vec<Vec<(String, String)>> {
    let internal = format!("{target}_1");
    let scopes = [
        format!("i:{target}"),
        format!("c:{target}"),
        target.to_owned(),
    ];
    let mut all: Vec<Vec<(String, String)>> = Vec::new();
    let mut one = |name: &str, value: &str| all.push(vec![(name.to_owned(), value.to_owned())]);
    for scope in &scopes {
        for name in [
            "x-seldon-scope",
            "X-Seldon-Scope",
            "X-SELDON-SCOPE",
            "x_seldon_scope",
            "X-Seldon_Scope",
        ] {
            one(name, scope);
        }
    }
    for name in [
        "seldon-internal-model",
        "Seldon-Internal-Model",
        "SELDON-INTERNAL-MODEL",
        "seldon_internal_model",
    ] {
        one(name, &internal);
        one(name, &format!("{internal},{internal}"));
    }
    for name in ["x-seldon-mirror-model", "X-Seldon-Mirror-Model"] {
        one(name, &internal);
    }
    one("x-seldon-route", &format!(":{internal}:"));
    for name in [
        "x-envoy-original-path",
        "x-original-url",
        "x-rewrite-url",
        "x-forwarded-uri",
        "x-forwarded-path",
    ] {
        one(name, &format!("/v2/models/{target}/infer"));
    }
    one("x-envoy-upstream-alt-stat-name", target);
    one("x-envoy-decorator-operation", target);
    one("x-host-override", target);
    // A header that Connection names is for the next hop only: it must not take one of ours with it.
    for name in [
        "x-seldon-scope",
        "seldon-internal-model",
        "seldon-model",
        "x-request-id",
    ] {
        let connection = ("Connection".to_owned(), format!("close, {name}"));
        all.push(vec![connection.clone()]);
        all.push(vec![
            connection,
            ("seldon-internal-model".to_owned(), internal.clone()),
        ]);
    }
    // Twice, in either order of good and bad.
    for scope in &scopes {
        let forged = ("x-seldon-scope".to_owned(), scope.clone());
        all.push(vec![forged.clone(), forged.clone()]);
        all.push(vec![
            ("X-Seldon-Scope".to_owned(), "c:forge-a".to_owned()),
            forged,
        ]);
    }
    let forged = ("seldon-internal-model".to_owned(), internal.clone());
    all.push(vec![forged.clone(), forged.clone()]);
    all.push(vec![
        ("Seldon-Internal-Model".to_owned(), "forge-a_1".to_owned()),
        forged.clone(),
    ]);
    let cluster = (
        "x-seldon-mirror-cluster".to_owned(),
        "xds_cluster".to_owned(),
    );
    all.push(vec![
        cluster.clone(),
        ("x-seldon-mirror-model".to_owned(), internal),
    ]);
    all.push(vec![cluster, forged]);
    all
}

/// Who answered, by both the route and the body; nothing for a refusal.
fn who(answer: &seldon_e2e::Answer) -> Result<Option<String>> {
    if answer.status != 200 {
        ensure!(
            (400..500).contains(&answer.status),
            "{}: {}",
            answer.status,
            answer.text()
        );
        return Ok(None);
    }
    let json = answer.json()?;
    let name = json["model_name"].as_str().context("no model_name")?;
    ensure!(
        answer.all("x-seldon-route") == [format!(":{name}:")],
        "{name}, but {:?}",
        answer.fields
    );
    Ok(Some(name.to_owned()))
}

fn headers(running: &Running) -> Result<()> {
    let _a = Loaded::available(running, &Spec::iris("forge-a").replicas(2))?;
    let _b = Loaded::available(running, &Spec::iris("forge-b"))?;
    for attempt in attempts("forge-b") {
        for named in [true, false] {
            for before in [true, false] {
                let add = |ask: Ask| {
                    attempt
                        .iter()
                        .fold(ask, |ask, (name, value)| ask.header(name, value))
                };
                let name = |ask: Ask| {
                    if named {
                        ask.header("seldon-model", "forge-a")
                    } else {
                        ask
                    }
                };
                let ask = Ask::post("/v2/models/forge-a/infer", IRIS);
                let ask = if before {
                    name(add(ask))
                } else {
                    add(name(ask))
                };
                let answer = ask
                    .send(running.data())
                    .with_context(|| format!("{attempt:?}"))?;
                let who = who(&answer).with_context(|| format!("{attempt:?}"))?;
                ensure!(
                    who.as_deref().is_none_or(|who| who == "forge-a_1"),
                    "{attempt:?}: {who:?} answered"
                );
                // Headers that mean nothing to us do no harm either.
                let harmless = attempt
                    .iter()
                    .all(|(name, _)| !name.contains('_') && name != "Connection");
                ensure!(
                    !harmless || who.is_some(),
                    "{attempt:?}: {} {}",
                    answer.status,
                    answer.text()
                );
            }
        }
    }
    // What the header seldon-model itself may say.
    for value in [
        "forge-b_1",
        "i:forge-b",
        "c:forge-b",
        ":forge-b",
        "forge-b_1.model",
        "forge-a,forge-b",
        "forge-b,",
        "forge-b/1",
        "i:forge-b/1",
        "forge%2Db",
        "%REQ(x)%",
        "FORGE-B",
        "forge-b\t",
        "*",
        "forge-b.experiment",
    ] {
        let ask = Ask::post("/v2/models/forge-a/infer", IRIS).header("seldon-model", value);
        let answer = ask.send(running.data())?;
        // White space around a value is no part of it.
        if value.trim() != "forge-b" {
            ensure!(
                who(&answer)?.is_none(),
                "seldon-model {value:?}: {:?} answered",
                who(&answer)?
            );
        }
    }
    // Of several, the first counts, in whatever letters.
    let twice = Ask::post("/v2/models/forge-b/infer", IRIS)
        .header("seldon-model", "forge-a")
        .header("Seldon-Model", "forge-b");
    let answer = twice.send(running.data())?;
    ensure!(
        who(&answer)?.is_none_or(|who| who == "forge-a_1"),
        "{answer:?}"
    );
    for path in [
        "/v2/models/forge-b_1/infer",
        "/v2/models/i:forge-b/infer",
        "/v2/models/i%3Aforge-b/infer",
        "/v2/models/forge-b%2F1/infer",
        "/v2/models/%00/infer",
    ] {
        let answer = Ask::post(path, IRIS).send(running.data())?;
        ensure!(
            who(&answer)?.is_none(),
            "{path}: {:?} answered",
            who(&answer)?
        );
    }
    let asked = metrics::inferences(running, "forge-b_1")?;
    // The one that asked for it by `forge-b` and a tab, if at all.
    ensure!(asked <= 1.0, "forge-b was asked {asked} times");
    Ok(())
}

/// A field 1 (`model_name`) or 2 (`model_version`) as it would be encoded.
fn text_field(number: u8, value: &str) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(number << 3 | 2);
    bytes.put_u8(u8::try_from(value.len()).unwrap_or(0));
    bytes.put_slice(value.as_bytes());
    bytes.freeze()
}

fn messages(running: &Running) -> Result<()> {
    let _a = Loaded::available(running, &Spec::iris("message-a"))?;
    let _b = Loaded::available(running, &Spec::iris("message-b"))?;
    let honest = iris("").encode_to_vec();
    let forged = [
        text_field(1, "message-b_1"),
        text_field(1, "message-b"),
        text_field(2, "1"),
        text_field(1, ""),
    ];
    let named = [("seldon-model", "message-a")];
    let call = |headers: &[(&str, &str)], parts: &[&[u8]]| {
        let call = framed(
            running.data(),
            INFER,
            headers,
            message_frame(&parts.concat()),
        );
        running.block_on(call)
    };
    for field in &forged {
        for parts in [
            vec![field.as_ref(), &honest],
            vec![&honest, field.as_ref()],
            vec![field.as_ref(), &honest, field.as_ref()],
        ] {
            let answer = call(&named, &parts)?;
            ensure!(answer.code() == Some(0), "{answer:?}");
            let message: pb::ModelInferResponse = answer.message()?;
            ensure!(
                message.model_name == "message-a_1",
                "{field:?}: {} answered",
                message.model_name
            );
        }
    }
    // Without a header one name is taken, once: whoever is called by it answers under it.
    let (a, b) = (text_field(1, "message-a"), text_field(1, "message-b"));
    let internal = text_field(1, "message-b_1");
    for parts in [
        vec![a.as_ref(), &honest, &b],
        vec![a.as_ref(), &b, &honest],
        vec![a.as_ref(), &honest, &internal],
        vec![&honest, a.as_ref()],
    ] {
        let answer = call(&[], &parts)?;
        if answer.code() == Some(0) {
            let message: pb::ModelInferResponse = answer.message()?;
            let route = answer
                .headers
                .get("x-seldon-route")
                .context("no route")?
                .to_str()?;
            ensure!(
                route == format!(":{}:", message.model_name),
                "{route}, but {}",
                message.model_name
            );
        }
    }
    let answer = call(&[], &[&internal, &honest])?;
    ensure!(
        answer.code() == Some(5),
        "an internal name was taken: {answer:?}"
    );
    for (name, value) in [
        ("x-seldon-scope", "i:message-b"),
        ("seldon-internal-model", "message-b_1"),
        ("x-seldon-mirror-model", "message-b_1"),
    ] {
        for headers in [
            &[("seldon-model", "message-a"), (name, value)][..],
            &[(name, value)],
        ] {
            let answer = call(headers, &[&a, &honest])?;
            let message: pb::ModelInferResponse = answer.message()?;
            ensure!(
                message.model_name == "message-a_1",
                "{name}: {} answered",
                message.model_name
            );
        }
    }
    Ok(())
}
