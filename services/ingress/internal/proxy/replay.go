package proxy

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
)

// replayBytes is how much of a request's body is kept so that it can be sent again.
const replayBytes = 64 << 10

// errTooLarge is a body above its limit.
var errTooLarge = errors.New("the request's body is too large")

// errSpent is a body that cannot be read again from its beginning.
var errSpent = errors.New("the request's body was read further than is kept")

// replay is a request's body that several attempts may read, one after the other, while it is small.
type replay struct {
	src     io.Reader
	control *http.ResponseController
	pause   time.Duration
	limit   int64 // 0: none
	large   bool  // known to be more than is kept
	// announced are the trailers of src; their values are there when it has ended.
	announced http.Header

	mu    sync.Mutex
	kept  []byte
	read  int64 // from src
	spent bool  // more was read than is kept
	err   error // src's last word
}

// attempt is one reader of a replay. Close ends it without waiting for a read that the client does not answer.
type attempt struct {
	body   *replay
	at     int
	closed atomic.Bool
	// trailer is filled in at the end; it is the attempt's own, since an earlier one may still be read from.
	trailer http.Header
}

// open makes a reader from the beginning.
func (b *replay) open() (*attempt, error) {
	if !b.whole() {
		return nil, errSpent
	}
	return &attempt{body: b}, nil
}

// into gives a request a reader from the beginning, and the trailers that may follow.
func (b *replay) into(r *http.Request) error {
	a, err := b.open()
	if err != nil {
		return err
	}
	r.Body, r.Trailer = a, nil
	r.GetBody = func() (io.ReadCloser, error) { return b.open() }
	for name := range b.announced {
		// What a header may not say does not come in behind the body.
		if httpguts.ValidTrailerHeader(name) && !isOurs(name) {
			if a.trailer == nil {
				a.trailer = http.Header{}
			}
			a.trailer[name] = nil
		}
	}
	if a.trailer != nil {
		r.Trailer, r.GetBody = a.trailer, nil // another reader would not fill them in
	}
	return nil
}

// end is what a reader learns at its end. It is called with the body's mutex.
func (a *attempt) end(err error) error {
	if err == io.EOF { //nolint:errorlint // a reader's end is io.EOF itself
		for name := range a.trailer {
			a.trailer[name] = a.body.announced[name]
		}
	}
	return err
}

// whole says whether the body can be read from its beginning.
func (b *replay) whole() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.spent
}

// ended says whether all of the body was read, or the client stopped sending it for too long.
func (b *replay) ended() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err != nil && b.err != errTooLarge //nolint:errorlint // errTooLarge is never wrapped
}

// failure is what went wrong with the client's side; nil where nothing did.
func (b *replay) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == io.EOF { //nolint:errorlint // a reader's end is io.EOF itself
		return nil
	}
	return b.err
}

// Read implements io.Reader.
func (a *attempt) Read(p []byte) (int, error) {
	b := a.body
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	if a.at < len(b.kept) {
		n := copy(p, b.kept[a.at:])
		a.at += n
		return n, nil
	}
	if b.err != nil {
		return 0, a.end(b.err)
	}
	if b.spent && int64(a.at) != b.read {
		return 0, errSpent
	}
	n, err := b.fill(p)
	a.at += n
	return n, a.end(err)
}

// Close implements io.Closer.
func (a *attempt) Close() error {
	a.closed.Store(true)
	return nil
}

// fill reads from the client.
func (b *replay) fill(p []byte) (int, error) {
	// A deadline that cannot be set is one of a connection that is gone, which the read says, too.
	_ = b.control.SetReadDeadline(time.Now().Add(b.pause))
	n, err := b.src.Read(p)
	b.read += int64(n)
	if b.limit > 0 && b.read > b.limit {
		err, n = errTooLarge, 0
	}
	if err != nil {
		b.err = err
	}
	if err == io.EOF {
		// net/http reads on, to learn of a client that leaves; any other end stays one.
		_ = b.control.SetReadDeadline(time.Time{})
	}
	switch {
	case b.spent:
	case b.large && n > 0:
		b.spent = true
	case len(b.kept)+n <= replayBytes:
		b.kept = append(b.kept, p[:n]...)
	default:
		b.spent, b.kept = true, nil
	}
	return n, err
}
