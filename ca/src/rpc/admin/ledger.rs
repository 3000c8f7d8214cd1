//! The ledger to the operator: record by record, no faster than it is read.

use std::sync::Arc;

use futures_util::Stream;
use postern_api::ca::v1 as pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::ledger::chain::{Anchor, Chain, Key, Line};
use crate::ledger::command::Told;
use crate::ledger::kept::{Kept, KeptError, Walk};

/// Records on their way.
const AHEAD: usize = 64;

/// One ledger after the other.
pub(super) fn stream(
    ledgers: Vec<(Arc<Kept>, Key)>,
    asked: pb::ReadLedgerRequest,
) -> impl Stream<Item = Result<pb::LedgerRecord, Status>> + Send {
    let (out, told) = mpsc::channel(AHEAD);
    // Ends with its reader: a record that nobody takes is an error.
    tokio::task::spawn_blocking(move || {
        let gone = |_| KeptError::Io("whoever asked has gone".to_owned());
        let send = |record| out.blocking_send(Ok(record)).map_err(gone);
        let walk = |(kept, key): &(Arc<Kept>, Key)| {
            let begin = |chain: &Chain, anchor: Option<&Anchor>| match anchor.filter(|_| asked.sealed) {
                Some(anchor) => send(pb::LedgerRecord {
                    line: Line::anchored(chain, anchor).text(),
                    ..pb::LedgerRecord::default()
                }),
                None => Ok(()),
            };
            let visit = |record: Walk<'_>| match told_of(key, &asked, &record)? {
                Some(told) => send(told),
                None => Ok(()),
            };
            kept.walk(u64::MAX, begin, visit).map(drop)
        };
        let walked = ledgers.iter().try_for_each(walk);
        if let Err(error) = walked {
            let status = match error {
                KeptError::Damaged(why) => Status::data_loss(why),
                KeptError::Io(why) => Status::unavailable(why),
            };
            let _ = out.blocking_send(Err(status));
        }
    });
    ReceiverStream::new(told)
}

fn told_of(key: &Key, asked: &pb::ReadLedgerRequest, record: &Walk<'_>) -> Result<Option<pb::LedgerRecord>, KeptError> {
    let opened = record.chain.open(key, record.number, &record.before, record.sealed);
    let failed = |why: String| format!("record {}: {why}", record.number);
    if asked.sealed {
        return Ok(Some(pb::LedgerRecord {
            line: Line::of(record.chain, record.number, record.sealed).text(),
            entry: String::new(),
            trouble: opened.err().map(failed).unwrap_or_default(),
        }));
    }
    let entry = opened.map_err(|why| KeptError::Damaged(failed(why)))?;
    let since = u64::try_from(asked.since_unix).unwrap_or_default();
    let about = asked.identity.is_empty() || entry.concerns(&asked.identity);
    if entry.time < since || !about {
        return Ok(None);
    }
    let told = Told {
        chain: record.chain.to_string(),
        number: record.number,
        entry,
    };
    let entry = serde_json::to_string(&told).map_err(|error| KeptError::Io(error.to_string()))?;
    Ok(Some(pb::LedgerRecord {
        entry,
        ..pb::LedgerRecord::default()
    }))
}
