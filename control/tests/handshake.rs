//! Who knocks at a node without speaking its language, or too slowly, is not listened to for long.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use pangea_control::controller::identity::Identity;
use pangea_control::controller::noise::{HANDSHAKE_TIME, NoiseError, accept, connect};
use pangea_ipc::ids::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Duration, Instant, sleep};

/// A connected pair of TCP streams: the one who knocks, and the one who opens.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

async fn accept_after(bytes: &[u8]) -> NoiseError {
    let (mut near, far) = pair().await;
    near.write_all(bytes).await.unwrap();
    near.shutdown().await.unwrap();
    accept(far, &Identity::generate().unwrap()).await.err().unwrap()
}

#[tokio::test]
async fn garbage_and_halves_of_messages_are_refused() {
    assert!(matches!(accept_after(b"").await, NoiseError::Io(_)));
    assert!(matches!(accept_after(b"\x00").await, NoiseError::Io(_)));
    assert!(matches!(accept_after(b"\x00\x20half").await, NoiseError::Io(_)));
    assert!(matches!(accept_after(b"GET / HTTP/1.1\r\n\r\n").await, NoiseError::TooLong { len: 0x4745 }));
    let mut shaped = vec![0, 96];
    shaped.extend([7; 96]); // the length of a handshake message, and nothing else of it
    assert!(matches!(accept_after(&shaped).await, NoiseError::Handshake(_) | NoiseError::Io(_)));
}

#[tokio::test(start_paused = true)]
async fn silence_and_one_byte_a_second_end_within_the_handshake_time() {
    for bytes_a_second in [0_u8, 1] {
        let (mut near, far) = pair().await;
        let started = Instant::now();
        let drip = async {
            loop {
                sleep(Duration::from_secs(1)).await;
                if bytes_a_second > 0 && near.write_all(&[0]).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let identity = Identity::generate().unwrap();
        let result = tokio::select! {
            result = accept(far, &identity) => result.err().unwrap(),
            () = drip => unreachable!("it drips without end"),
        };
        // A first message of no bytes is refused before the time is over.
        let refused = matches!(result, NoiseError::TimedOut | NoiseError::Handshake(_));
        assert!(refused && started.elapsed() <= HANDSHAKE_TIME + Duration::from_secs(1), "{result}");
    }
}

#[tokio::test]
async fn the_one_who_knocks_hears_the_refusal_and_never_shows_itself_to_another() {
    LocalSet::new()
        .run_until(async {
            let (host, guest) = (Identity::generate().unwrap(), Identity::generate().unwrap());
            let expected = host.node;
            let (near, far) = pair().await;
            let opener = host.clone();
            spawn_local(async move { accept(far, &opener).await.unwrap().refuse("not today").await });
            let error = connect(near, &guest, expected).await.err().unwrap();
            assert!(matches!(&error, NoiseError::Refused(why) if why == "not today"), "{error}");

            let (near, far) = pair().await;
            let opener = spawn_local(async move { accept(far, &host).await.err().unwrap() });
            let error = connect(near, &guest, NodeId([1; 32])).await.err().unwrap();
            assert!(matches!(error, NoiseError::OtherNode { .. }), "{error}");
            assert!(matches!(opener.await.unwrap(), NoiseError::Io(_)), "the guest left before it said who it is");
        })
        .await;
}

#[tokio::test]
async fn what_goes_in_comes_out_and_a_changed_byte_ends_the_session() {
    LocalSet::new()
        .run_until(async {
            let (host, guest) = (Identity::generate().unwrap(), Identity::generate().unwrap());
            let expected = host.node;
            // Between the two sits someone who flips a bit of whatever passes after the handshake and the first message.
            let (near, wire_near) = pair().await;
            let (mut wire_far, far) = pair().await;
            let meddler = spawn_local(async move {
                let mut wire_near = wire_near;
                let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
                let mut passed = 0;
                loop {
                    tokio::select! {
                        len = wire_near.read(&mut up) => match len {
                            Ok(len) if len > 0 => {
                                passed += len;
                                if passed > 100_000 {
                                    up[len / 2] ^= 1;
                                }
                                if wire_far.write_all(&up[..len]).await.is_err() { return }
                            }
                            _ => return,
                        },
                        len = wire_far.read(&mut down) => match len {
                            Ok(len) if len > 0 => {
                                if wire_near.write_all(&down[..len]).await.is_err() { return }
                            }
                            _ => return,
                        },
                    }
                }
            });
            let server = spawn_local(async move {
                let mut stream = accept(far, &host).await.unwrap().welcome().await.unwrap();
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all).await;
                all
            });
            let mut stream = connect(near, &guest, expected).await.unwrap();
            let bytes: Vec<u8> = (0..400_000_u32).map(|n| n as u8).collect();
            let _ = stream.write_all(&bytes).await; // it may end while this is written
            drop(stream);
            let arrived = server.await.unwrap();
            assert!(arrived.len() > 50_000 && arrived.len() < bytes.len(), "{} arrived", arrived.len());
            assert!(bytes.starts_with(&arrived), "nothing wrong came through");
            meddler.abort();
        })
        .await;
}
