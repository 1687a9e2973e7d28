//! Unknown fields in requests, byte for byte over a real connection.

#![allow(clippy::unwrap_used)]

mod support;

use prost::Message;
use support::{Controller, list, topology};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};
use weft_process::transport::connect;
use weft_proto::v1::{ApplyRequest, ChangeReply};

/// Sends bytes as they are.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ChangeReply;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ChangeReply;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<ChangeReply>, Status> {
        let reply = ChangeReply::decode(buffer);
        reply
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

async fn apply(controller: &Controller, bytes: Vec<u8>) -> Result<ChangeReply, Status> {
    let mut client = Grpc::new(connect(&controller.address, None).await.unwrap());
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/weft.v1.Intent/Apply");
    let reply = client.unary(Request::new(bytes), path, Raw).await?;
    Ok(reply.into_inner())
}

#[tokio::test]
async fn a_request_with_an_unknown_field_is_refused_whole_and_the_field_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let good = ApplyRequest {
        objects: Some(topology()),
        ..ApplyRequest::default()
    }
    .encode_to_vec();

    // Field 77 of the request, a number.
    let outside = [good.as_slice(), &[0xe8, 0x04, 0x01]].concat();
    let refused = apply(&controller, outside).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        refused.message(),
        "unknown field 77 of weft.v1.ApplyRequest"
    );

    // A VPC (objects.vpcs) whose field 77 is text.
    let vpc = b"\x0a\x05green\x10\x09\xea\x04\x02hi";
    let objects = [&[0x12, vpc.len() as u8][..], vpc].concat();
    let inside = [&[0x0a, objects.len() as u8][..], &objects].concat();
    let refused = apply(&controller, inside).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        refused.message(),
        "unknown field 77 of weft.v1.Vpc at objects.vpcs"
    );

    let stored = list(&mut controller.intent().await, "", "").await;
    assert_eq!(stored[0].revision, 0, "nothing was stored");
    assert_eq!(apply(&controller, good).await.unwrap().created, 10);
}
