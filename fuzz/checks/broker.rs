//! What holds for any requests to the embedded broker.
use bytes::Bytes;

/// Requests of one client, each behind two bytes of its length: each is answered or ends the connection.
pub fn requests(bytes: &[u8]) {
    let mut rest = bytes;
    let mut requests = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(behind.len());
        requests.push(Bytes::copy_from_slice(&behind[..length]));
        rest = &behind[length..];
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(seldon_broker::answer_each(requests));
}
