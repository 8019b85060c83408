package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

// FuzzFraming looks for a stream that the framing lets through and net/http reads as other messages: then the framing
// would look for a header where net/http sees a body, or the other way round.
func FuzzFraming(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nT: 1\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\nHost: a\ncontent-length: 0\n\nGET / HTTP/1.0\n\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
	} {
		f.Add([]byte(seed), uint8(3))
	}
	f.Fuzz(func(t *testing.T, stream []byte, piece uint8) {
		fr := framing{maxLine: 8 << 10, maxFields: 128}
		for rest := stream; len(rest) > 0; {
			n := min(len(rest), int(piece)+1)
			if fr.feed(rest[:n]) != nil {
				return
			}
			rest = rest[n:]
		}
		if fr.state == opaque {
			return
		}
		in := bufio.NewReader(bytes.NewReader(stream))
		for {
			if at, err := in.Peek(1); err != nil || at[0] == '\r' || at[0] == '\n' {
				return // net/http refuses a message that begins so
			}
			r, err := http.ReadRequest(in)
			if err != nil {
				if err == io.EOF || err == io.ErrUnexpectedEOF { //nolint:errorlint // as bufio has it
					return // the framing waits for more, too
				}
				return // net/http refuses it and closes the connection
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
			if rest, _ := in.Peek(1); len(rest) == 0 { // the end of a message, and of the stream
				if fr.state != inRequestLine || len(fr.line) > 0 {
					t.Fatalf("net/http has read whole messages, the framing is in state %d", fr.state)
				}
				return
			}
		}
	})
}

func TestFramingKeepsLittle(t *testing.T) {
	t.Parallel()
	f := framing{maxLine: 100, maxFields: 10}
	if r := f.feed([]byte("GET / HTTP/1.1\r\nX: ")); r != nil {
		t.Fatal(r)
	}
	for range 1000 {
		if r := f.feed([]byte(strings.Repeat("y", 1000))); r != nil {
			t.Fatal(r)
		}
	}
	if cap(f.line) > 4*maxKept {
		t.Errorf("keeps %d bytes of a line", cap(f.line))
	}
}
