package proxy

import (
	"bytes"
	"strconv"
	"strings"
)

// refusal is why a message is not taken, before net/http sees the end of its header.
type refusal struct {
	status int
	reason string
}

// framing follows the bytes of one HTTP/1 connection, from message to message, and refuses what two parsers could frame in
// different ways (RFC 9112 sections 2.2, 5.2, 6.1, 6.3 and 7.1). It is stricter than net/http, which parses what is let
// through: where the two agree on a message, they agree where the next one begins.
type framing struct {
	maxLine, maxFields int

	state  frameState
	line   []byte // the present line of a header or of the chunked framing
	cut    bool   // the line is longer than what is kept of it
	fields int    // of the present header
	left   int64  // bytes of the present body or chunk
	head   head
}

// head is what the framing needs to know of a message's header.
type head struct {
	version11                bool
	lengths, encodings       int
	length                   int64
	chunked, upgrade, folded bool
}

type frameState uint8

const (
	inRequestLine frameState = iota
	inFields
	inBody
	inChunkSize
	inChunk
	inChunkEnd
	inTrailer
	opaque // whatever follows is no HTTP/1 of ours: an upgrade, HTTP/2, or a refused message
)

// maxKept bounds how much of a line is kept. A field that says where the body ends is refused where it is longer.
const maxKept = 512

// preface begins HTTP/2 with prior knowledge (RFC 9113 section 3.4).
const preface = "PRI * HTTP/2.0"

// feed takes the next bytes in; nil lets them pass.
func (f *framing) feed(p []byte) *refusal {
	for len(p) > 0 {
		switch f.state {
		case opaque:
			return nil
		case inBody, inChunk:
			n := min(int64(len(p)), f.left)
			p = p[n:]
			if f.left -= n; f.left == 0 {
				f.next()
			}
			continue
		}
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			return f.keep(p)
		}
		if r := f.keep(p[:i]); r != nil {
			return r
		}
		p = p[i+1:]
		if r := f.endLine(); r != nil {
			f.state = opaque
			return r
		}
		f.line, f.cut = f.line[:0], false
	}
	return nil
}

// next goes on after the last byte of a body or a chunk.
func (f *framing) next() {
	if f.state == inChunk {
		f.state = inChunkEnd
		return
	}
	f.begin()
}

func (f *framing) begin() {
	f.state, f.head, f.fields = inRequestLine, head{}, 0
}

// keep adds to the present line.
func (f *framing) keep(p []byte) *refusal {
	if f.state == inRequestLine && len(f.line)+len(p) > f.maxLine {
		f.state = opaque
		return &refusal{414, "the request line is longer than " + strconv.Itoa(f.maxLine) + " bytes"}
	}
	limit := maxKept
	if f.state == inRequestLine {
		limit = f.maxLine
	}
	room := limit - len(f.line)
	f.cut = f.cut || len(p) > room
	if room > 0 {
		f.line = append(f.line, p[:min(room, len(p))]...)
	} else if f.state == inChunkSize || f.state == inChunkEnd {
		f.state = opaque
		return &refusal{400, "a chunk's size is followed by too many extensions"}
	}
	return nil
}

func (f *framing) endLine() *refusal {
	line := f.line
	crlf := len(line) > 0 && line[len(line)-1] == '\r'
	text := strings.TrimSuffix(string(line), "\r")
	switch f.state {
	case inRequestLine:
		if text == "" {
			return nil // RFC 9112 section 2.2: an empty line before a request is ignored
		}
		if strings.HasPrefix(text, preface) {
			f.state = opaque
			return nil
		}
		f.head.version11 = strings.HasSuffix(text, " HTTP/1.1")
		f.state = inFields
	case inFields:
		if text == "" {
			return f.endHead()
		}
		return f.field(text)
	case inChunkSize:
		return f.chunkSize(text, crlf)
	case inChunkEnd:
		if text != "" || !crlf {
			return &refusal{400, "a chunk is not followed by CR LF"}
		}
		f.state = inChunkSize
	case inTrailer:
		if text == "" {
			f.begin()
			return nil
		}
		if f.fields++; f.fields > f.maxFields {
			return &refusal{431, "more than " + strconv.Itoa(f.maxFields) + " fields"}
		}
	}
	return nil
}

// field reads one line of a header.
func (f *framing) field(text string) *refusal {
	if f.fields++; f.fields > f.maxFields {
		return &refusal{431, "more than " + strconv.Itoa(f.maxFields) + " header fields"}
	}
	if text[0] == ' ' || text[0] == '\t' {
		f.head.folded = true
		return nil
	}
	name, value, _ := strings.Cut(text, ":")
	value = strings.Trim(value, " \t")
	switch strings.ToLower(strings.TrimSpace(name)) {
	case "content-length":
		f.head.lengths++
		n, err := strconv.ParseUint(value, 10, 62)
		if err != nil || f.cut {
			f.head.lengths = maxKept // as bad as several
		}
		f.head.length = int64(n)
	case "transfer-encoding":
		f.head.encodings++
		f.head.chunked = strings.EqualFold(value, "chunked") && !f.cut
	case "upgrade":
		f.head.upgrade = true
	}
	return nil
}

// endHead judges a header and begins what follows it.
func (f *framing) endHead() *refusal {
	h := f.head
	switch {
	case h.folded:
		return &refusal{400, "a header field is folded over several lines"}
	case h.lengths > 0 && h.encodings > 0:
		return &refusal{400, "both Content-Length and Transfer-Encoding"}
	case h.lengths > 1:
		return &refusal{400, "Content-Length is not one number"}
	case h.encodings > 0 && !h.version11:
		return &refusal{400, "Transfer-Encoding in another version than HTTP/1.1"}
	case h.encodings > 1 || h.encodings == 1 && !h.chunked:
		return &refusal{501, "a Transfer-Encoding other than chunked"}
	}
	switch {
	case h.upgrade:
		f.state = opaque // the handler closes the connection where the upgrade is not accepted
	case h.chunked:
		f.state, f.fields = inChunkSize, 0
	case h.length > 0:
		f.state, f.left = inBody, h.length
	default:
		f.begin()
	}
	return nil
}

func (f *framing) chunkSize(text string, crlf bool) *refusal {
	size, _, _ := strings.Cut(text, ";")
	size = strings.TrimRight(size, " \t")
	n, err := strconv.ParseUint(size, 16, 62)
	if err != nil || !crlf {
		return &refusal{400, "a chunk's size is not a hexadecimal number at the end of a line"}
	}
	if n == 0 {
		f.state = inTrailer
	} else {
		f.state, f.left = inChunk, int64(n)
	}
	return nil
}
