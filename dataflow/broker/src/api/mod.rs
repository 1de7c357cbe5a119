//! What each request does.

mod admin;
mod commits;
mod configs;
mod fetch;
mod membership;
mod metadata;
mod offsets;
mod produce;
mod transactional;

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use crate::connection::{Refusal, Session};
use crate::node::Node;
use crate::schema::APIS;

/// The id of the only broker.
const BROKER: BrokerId = BrokerId(1);

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn code<T>(result: &Result<T, ResponseError>) -> i16 {
    result.as_ref().err().map_or(0, ResponseError::code)
}

/// True for requests whose answer may take its time.
pub(crate) fn may_wait(key: i16) -> bool {
    [ApiKey::Fetch, ApiKey::JoinGroup, ApiKey::SyncGroup]
        .iter()
        .any(|known| *known as i16 == key)
}

fn encode(response: &impl Encodable, version: i16, output: &mut BytesMut) -> Result<bool, Refusal> {
    response
        .encode(output, version)
        .map_err(|error| Refusal::Answer(error.to_string()))?;
    Ok(true)
}

fn decode<T: Decodable>(mut request: Bytes, version: i16) -> Result<T, Refusal> {
    T::decode(&mut request, version).map_err(|_| Refusal::Malformed)
}

/// Appends the body of the answer; false if there is none.
pub(crate) async fn answer(
    node: &Node,
    session: &Session,
    key: ApiKey,
    version: i16,
    request: Bytes,
    output: &mut BytesMut,
) -> Result<bool, Refusal> {
    match key {
        ApiKey::Fetch => {
            let response = fetch::fetch(node, session, &decode(request, version)?).await;
            encode(&response, version, output)
        }
        ApiKey::JoinGroup => {
            let response =
                membership::join(node, session, decode(request, version)?, version).await;
            encode(&response, version, output)
        }
        ApiKey::SyncGroup => {
            let response = membership::sync(node, &decode(request, version)?).await;
            encode(&response, version, output)
        }
        _ => answer_now(node, key, version, request, output),
    }
}

fn answer_now(
    node: &Node,
    key: ApiKey,
    version: i16,
    request: Bytes,
    output: &mut BytesMut,
) -> Result<bool, Refusal> {
    macro_rules! by {
        ($handler:expr) => {{
            let response = $handler(node, decode(request, version)?);
            encode(&response, version, output)
        }};
        ($handler:expr, versioned) => {{
            let response = $handler(node, decode(request, version)?, version);
            encode(&response, version, output)
        }};
    }
    match key {
        ApiKey::Produce => match produce::produce(node, decode(request, version)?) {
            Some(response) => encode(&response, version, output),
            None => Ok(false),
        },
        ApiKey::ApiVersions => versions(false, version, output),
        ApiKey::Metadata => by!(metadata::metadata, versioned),
        ApiKey::DescribeCluster => by!(metadata::cluster),
        ApiKey::FindCoordinator => by!(metadata::coordinator),
        ApiKey::ListOffsets => by!(offsets::list, versioned),
        ApiKey::OffsetForLeaderEpoch => by!(offsets::for_epoch),
        ApiKey::DeleteRecords => by!(offsets::delete_records),
        ApiKey::Heartbeat => by!(membership::heartbeat),
        ApiKey::LeaveGroup => by!(membership::leave, versioned),
        ApiKey::DescribeGroups => by!(membership::describe),
        ApiKey::ListGroups => by!(membership::list),
        ApiKey::DeleteGroups => by!(membership::delete),
        ApiKey::OffsetCommit => by!(commits::commit),
        ApiKey::OffsetFetch => by!(commits::fetch),
        ApiKey::OffsetDelete => by!(commits::delete),
        ApiKey::CreateTopics => by!(admin::create),
        ApiKey::DeleteTopics => by!(admin::delete),
        ApiKey::CreatePartitions => by!(admin::grow),
        ApiKey::DescribeConfigs => by!(configs::describe),
        ApiKey::AlterConfigs => by!(configs::alter),
        ApiKey::IncrementalAlterConfigs => by!(configs::alter_some),
        ApiKey::InitProducerId => by!(transactional::init, versioned),
        ApiKey::AddPartitionsToTxn => by!(transactional::add_partitions, versioned),
        ApiKey::AddOffsetsToTxn => by!(transactional::add_offsets, versioned),
        ApiKey::TxnOffsetCommit => by!(transactional::commit_offsets),
        ApiKey::EndTxn => by!(transactional::end, versioned),
        _ => Err(Refusal::Unsupported(key, version)),
    }
}

/// Answers with what is supported; with the error for a version that is not.
pub(crate) fn versions(
    unsupported: bool,
    version: i16,
    output: &mut BytesMut,
) -> Result<bool, Refusal> {
    let supported = |api: &crate::schema::Api| {
        ApiVersion::default()
            .with_api_key(api.key as i16)
            .with_min_version(api.min)
            .with_max_version(api.max)
    };
    let error = if unsupported {
        ResponseError::UnsupportedVersion.code()
    } else {
        0
    };
    let response = ApiVersionsResponse::default()
        .with_error_code(error)
        .with_api_keys(APIS.iter().map(supported).collect());
    encode(&response, version, output)
}

/// Answers what is not supported with the error of the protocol, where the answer has a place for it.
pub(crate) fn refuse(key: ApiKey, version: i16, output: &mut BytesMut) -> Result<bool, Refusal> {
    let error = ResponseError::UnsupportedVersion.code();
    macro_rules! with_error {
        ($($kind:ident: $response:ident),* $(,)?) => {
            match key {
                $(ApiKey::$kind if key.valid_versions().min <= version && version <= key.valid_versions().max => {
                    encode(&$response::default().with_error_code(error), version, output)
                })*
                _ => Err(Refusal::Unsupported(key, version)),
            }
        };
    }
    with_error! {
        ConsumerGroupHeartbeat: ConsumerGroupHeartbeatResponse,
        ShareGroupHeartbeat: ShareGroupHeartbeatResponse,
        DescribeAcls: DescribeAclsResponse,
        SaslHandshake: SaslHandshakeResponse,
        SaslAuthenticate: SaslAuthenticateResponse,
        DescribeClientQuotas: DescribeClientQuotasResponse,
        DescribeUserScramCredentials: DescribeUserScramCredentialsResponse,
        ListTransactions: ListTransactionsResponse,
        ListPartitionReassignments: ListPartitionReassignmentsResponse,
        AlterPartitionReassignments: AlterPartitionReassignmentsResponse,
        DescribeLogDirs: DescribeLogDirsResponse,
        UpdateFeatures: UpdateFeaturesResponse,
        GetTelemetrySubscriptions: GetTelemetrySubscriptionsResponse,
        CreateDelegationToken: CreateDelegationTokenResponse,
        DescribeDelegationToken: DescribeDelegationTokenResponse,
        ElectLeaders: ElectLeadersResponse,
    }
}
