//! Envoy's access log, as documented: a file, by default of failures only.
use envoy_types::pb::envoy::{
    config::{
        accesslog::v3::{
            AccessLog as EnvoyLog, AccessLogFilter, AndFilter, ComparisonFilter, GrpcStatusFilter,
            HeaderFilter, OrFilter, StatusCodeFilter, access_log,
            access_log_filter::FilterSpecifier, comparison_filter, grpc_status_filter,
        },
        core::v3::{
            DataSource, RuntimeUInt32, SubstitutionFormatString, data_source::Specifier,
            substitution_format_string::Format,
        },
        route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
    },
    extensions::access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat},
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};

use super::wire::any;

/// Where requests are written, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    pub path: String,
    /// Successful requests as well.
    pub successes: bool,
}

const LINE: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %GRPC_STATUS_NUMBER% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

pub(super) fn encode(log: &AccessLog) -> EnvoyLog {
    let line = SubstitutionFormatString {
        format: Some(Format::TextFormatSource(DataSource {
            specifier: Some(Specifier::InlineString(LINE.into())),
            ..Default::default()
        })),
        ..Default::default()
    };
    let file = FileAccessLog {
        path: log.path.clone(),
        access_log_format: Some(AccessLogFormat::LogFormat(line)),
    };
    EnvoyLog {
        name: "envoy.access_loggers.file".into(),
        filter: (!log.successes).then(failures),
        config_type: Some(access_log::ConfigType::TypedConfig(any(&file))),
    }
}

/// HTTP status of 400 or more, or a gRPC status other than OK, each for requests of its kind.
fn failures() -> AccessLogFilter {
    let status = FilterSpecifier::StatusCodeFilter(StatusCodeFilter {
        comparison: Some(ComparisonFilter {
            op: comparison_filter::Op::Ge.into(),
            value: Some(RuntimeUInt32 {
                default_value: 400,
                runtime_key: "status_code".into(),
            }),
        }),
    });
    let grpc_status = FilterSpecifier::GrpcStatusFilter(GrpcStatusFilter {
        statuses: vec![grpc_status_filter::Status::Ok.into()],
        exclude: true,
    });
    let either = OrFilter {
        filters: vec![both(status, grpc(false)), both(grpc_status, grpc(true))],
    };
    filter(FilterSpecifier::OrFilter(either))
}

fn grpc(is: bool) -> FilterSpecifier {
    FilterSpecifier::HeaderFilter(HeaderFilter {
        header: Some(HeaderMatcher {
            name: "content-type".into(),
            invert_match: !is,
            treat_missing_header_as_empty: true,
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
                ignore_case: true,
                match_pattern: Some(MatchPattern::Prefix("application/grpc".into())),
            })),
        }),
    })
}

fn both(one: FilterSpecifier, other: FilterSpecifier) -> AccessLogFilter {
    filter(FilterSpecifier::AndFilter(AndFilter {
        filters: vec![filter(one), filter(other)],
    }))
}

fn filter(specifier: FilterSpecifier) -> AccessLogFilter {
    AccessLogFilter {
        filter_specifier: Some(specifier),
    }
}
