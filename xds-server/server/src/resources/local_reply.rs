//! What Envoy says when it answers by itself: the protocol's own error, naming the model, pipeline or experiment.
use envoy_types::pb::{
    envoy::{
        config::{
            accesslog::v3::{
                AccessLogFilter, AndFilter, ComparisonFilter, HeaderFilter, ResponseFlagFilter,
                StatusCodeFilter, access_log_filter::FilterSpecifier, comparison_filter,
            },
            core::v3::{
                DataSource, RuntimeUInt32, SubstitutionFormatString, data_source::Specifier,
                substitution_format_string::Format,
            },
            route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
        },
        extensions::filters::network::http_connection_manager::v3::{
            LocalReplyConfig, ResponseMapper,
        },
        r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::{Struct, Value, value::Kind},
};

use seldon_core::PIPELINE_SUFFIX;
use seldon_routing::EXPERIMENT_SUFFIX;

use super::{
    names::{ABSENT_HEADER, MODEL_HEADER},
    wire::{number, overwrite},
};

const UNKNOWN: &str = "no model named %REQ(seldon-model)%";
const UNKNOWN_PIPELINE: &str = "no such pipeline is loaded: %REQ(seldon-model)%";
const UNKNOWN_EXPERIMENT: &str = "no such experiment is started: %REQ(seldon-model)%";
const UNNAMED: &str = "the request names no model: send the header seldon-model, or use a path below /v2/models/<name>/";
const NOT_SERVED: &str = "%REQ(:METHOD)% %REQ(:PATH)% is not served";
const MALFORMED_REQUEST: &str = "malformed request (%RESPONSE_CODE_DETAILS%)";
const NO_SERVER: &str = "no server answered (%RESPONSE_CODE_DETAILS%)";
const NO_ANSWER: &str = "model %REQ(seldon-model)%: no replica answered (%RESPONSE_CODE_DETAILS%)";
const NO_GATEWAY: &str =
    "%REQ(seldon-model)%: no pipeline gateway answered (%RESPONSE_CODE_DETAILS%)";
const OTHER: &str = "%LOCAL_REPLY_BODY%";

/// Paths whose clients speak OpenAI's language: something follows what is otherwise the end. The agents know them
/// exactly; Envoy takes no long expression.
const OPENAI: &str = r"/v2/models/[^?]+/infer(_stream)?/[a-z].*";
/// Type and code of an error there.
const UNKNOWN_THERE: (&str, &str) = ("invalid_request_error", "model_not_found");
const NO_ANSWER_THERE: (&str, &str) = ("server_error", "service_unavailable");

/// No route, that is no scope: nobody serves a model of this name.
const NO_ROUTE: &[&str] = &["NR"];
/// Refused by the list of served paths: nothing else of ours answers this, and it sets no flag.
const REFUSED: u32 = 403;
/// Refused before any filter, without a text.
const MALFORMED: u32 = 400;
/// The request went, or should have gone, to a replica.
const UPSTREAM: &[&str] = &["NC", "UH", "UF", "UC", "UO", "UR", "URX", "UT", "LR", "UPE"];

const NOT_FOUND: u32 = 404;
const GRPC_NOT_FOUND: &str = "5";
const GRPC_UNIMPLEMENTED: &str = "12";

/// The first mapper that fits decides.
pub(super) fn config() -> LocalReplyConfig {
    let mut mappers = Vec::new();
    let cases = [
        (
            vec![flags(NO_ROUTE), unnamed()],
            Some((NOT_FOUND, GRPC_NOT_FOUND)),
            UNNAMED,
        ),
        (
            vec![flags(NO_ROUTE), named(PIPELINE_SUFFIX)],
            Some((NOT_FOUND, GRPC_NOT_FOUND)),
            UNKNOWN_PIPELINE,
        ),
        (
            vec![flags(NO_ROUTE), named(EXPERIMENT_SUFFIX)],
            Some((NOT_FOUND, GRPC_NOT_FOUND)),
            UNKNOWN_EXPERIMENT,
        ),
        (
            vec![flags(NO_ROUTE)],
            Some((NOT_FOUND, GRPC_NOT_FOUND)),
            UNKNOWN,
        ),
        (
            vec![status(REFUSED)],
            Some((NOT_FOUND, GRPC_UNIMPLEMENTED)),
            NOT_SERVED,
        ),
        (vec![flags(UPSTREAM), unnamed()], None, NO_SERVER),
        (
            vec![flags(UPSTREAM), named(PIPELINE_SUFFIX)],
            None,
            NO_GATEWAY,
        ),
        (vec![flags(UPSTREAM)], None, NO_ANSWER),
        (vec![status(MALFORMED)], None, MALFORMED_REQUEST),
    ];
    for (filters, status, text) in cases {
        // Told from what a model itself does not find: a model gateway waits for a route that may be on its way.
        let absent = text == UNKNOWN;
        let marks = absent.then(|| overwrite(ABSENT_HEADER, "1"));
        let mut grpc = over_grpc(filters.clone(), status.map(|s| s.1), text);
        grpc.headers_to_add.extend(marks.clone());
        mappers.push(grpc);
        let there = match text {
            UNKNOWN | UNKNOWN_EXPERIMENT => Some(UNKNOWN_THERE),
            NO_ANSWER => Some(NO_ANSWER_THERE),
            _ => None,
        };
        mappers.extend(there.map(|(kind, code)| ResponseMapper {
            filter: Some(all([filters.clone(), vec![openai()]].concat())),
            status_code: status.and_then(|s| number(s.0)),
            headers_to_add: marks.clone().into_iter().collect(),
            body_format_override: Some(openai_json(text, kind, code)),
            ..Default::default()
        }));
        mappers.push(ResponseMapper {
            filter: Some(all(filters)),
            status_code: status.and_then(|s| number(s.0)),
            headers_to_add: marks.into_iter().collect(),
            body_format_override: Some(json(text)),
            ..Default::default()
        });
    }
    mappers.push(over_grpc(Vec::new(), None, OTHER));
    LocalReplyConfig {
        mappers,
        body_format: Some(json(OTHER)),
    }
}

/// A reply to gRPC has no body: Envoy puts the text into `grpc-message`, and the status that fits HTTP's into
/// `grpc-status` unless we say another.
fn over_grpc(
    mut filters: Vec<AccessLogFilter>,
    status: Option<&str>,
    message: &str,
) -> ResponseMapper {
    filters.push(header(
        "content-type",
        HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(MatchPattern::Prefix("application/grpc".into())),
            ..Default::default()
        }),
    ));
    ResponseMapper {
        filter: Some(all(filters)),
        headers_to_add: status
            .map(|status| overwrite("grpc-status", status))
            .into_iter()
            .collect(),
        body_format_override: Some(text(message)),
        ..Default::default()
    }
}

fn all(mut filters: Vec<AccessLogFilter>) -> AccessLogFilter {
    match (filters.len(), filters.pop()) {
        (1, Some(only)) => only,
        (_, last) => {
            filters.extend(last);
            filter(FilterSpecifier::AndFilter(AndFilter { filters }))
        }
    }
}

fn flags(flags: &[&str]) -> AccessLogFilter {
    filter(FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter {
        flags: flags.iter().map(|f| (*f).into()).collect(),
    }))
}

fn status(code: u32) -> AccessLogFilter {
    filter(FilterSpecifier::StatusCodeFilter(StatusCodeFilter {
        comparison: Some(ComparisonFilter {
            op: comparison_filter::Op::Eq.into(),
            value: Some(RuntimeUInt32 {
                default_value: code,
                runtime_key: format!("seldon.local_reply.{code}"),
            }),
        }),
    }))
}

fn unnamed() -> AccessLogFilter {
    header(MODEL_HEADER, HeaderMatchSpecifier::PresentMatch(false))
}

/// Names something of this kind.
fn named(suffix: &str) -> AccessLogFilter {
    header(
        MODEL_HEADER,
        HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(MatchPattern::Suffix(suffix.into())),
            ..Default::default()
        }),
    )
}

/// Is on one of OpenAI's paths.
fn openai() -> AccessLogFilter {
    header(
        ":path",
        HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(MatchPattern::SafeRegex(RegexMatcher {
                regex: OPENAI.into(),
                ..Default::default()
            })),
            ..Default::default()
        }),
    )
}

fn header(name: &str, matcher: HeaderMatchSpecifier) -> AccessLogFilter {
    filter(FilterSpecifier::HeaderFilter(HeaderFilter {
        header: Some(HeaderMatcher {
            name: name.into(),
            header_match_specifier: Some(matcher),
            ..Default::default()
        }),
    }))
}

fn filter(specifier: FilterSpecifier) -> AccessLogFilter {
    AccessLogFilter {
        filter_specifier: Some(specifier),
    }
}

fn json(error: &str) -> SubstitutionFormatString {
    format(Format::JsonFormat(object([("error", string(error))])))
}

/// An error as OpenAI says it.
fn openai_json(message: &str, kind: &str, code: &str) -> SubstitutionFormatString {
    let error = object([
        ("message", string(message)),
        ("type", string(kind)),
        ("code", string(code)),
    ]);
    format(Format::JsonFormat(object([(
        "error",
        Kind::StructValue(error),
    )])))
}

fn string(text: &str) -> Kind {
    Kind::StringValue(text.into())
}

fn object<const N: usize>(members: [(&str, Kind); N]) -> Struct {
    let member = |(name, kind): (&str, Kind)| (name.to_owned(), Value { kind: Some(kind) });
    Struct {
        fields: members.into_iter().map(member).collect(),
    }
}

fn text(message: &str) -> SubstitutionFormatString {
    format(Format::TextFormatSource(DataSource {
        specifier: Some(Specifier::InlineString(message.into())),
        ..Default::default()
    }))
}

fn format(format: Format) -> SubstitutionFormatString {
    SubstitutionFormatString {
        format: Some(format),
        ..Default::default()
    }
}
