//! The codec of the services: prost's, but a request with a field that the contract does not know is refused ([`weft_proto::strict`]).

use std::marker::PhantomData;

use prost::bytes::{Buf, Bytes};
use prost::{Message, Name};
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstEncoder};
use weft_proto::strict::check;

/// prost's codec, but requests are checked.
#[derive(Debug, Clone)]
pub struct StrictCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for StrictCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for StrictCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = StrictDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        StrictDecoder(PhantomData)
    }
}

/// Decodes a message, after a check if it is a request.
#[derive(Debug)]
pub struct StrictDecoder<U>(PhantomData<U>);

impl<U: Message + Name + Default> Decoder for StrictDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes: Bytes = buffer.copy_to_bytes(buffer.remaining());
        let malformed = |error: prost::DecodeError| Status::invalid_argument(error.to_string());
        if U::NAME.ends_with("Request") {
            check(&U::full_name(), &bytes).map_err(Status::invalid_argument)?;
        }
        U::decode(bytes).map(Some).map_err(malformed)
    }
}
