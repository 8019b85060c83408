package rpc

import (
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"podwire.dev/internal/errs"
)

// limited closes connections beyond its limit instead of leaving them to wait: a
// client that hears at once tries another replica.
type limited struct {
	net.Listener
	max  int64
	open atomic.Int64
	log  *slog.Logger
}

func limitListener(l net.Listener, limit int64, log *slog.Logger) net.Listener {
	return &limited{Listener: l, max: limit, log: log}
}

// Accept gives the next connection within the limit.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.max {
			return &counted{Conn: conn, open: &l.open}, nil
		}
		l.open.Add(-1)
		l.log.Warn("connection refused: too many are open", "limit", l.max, "remote", conn.RemoteAddr())
		_ = conn.Close()
	}
}

// counted gives its place back once, however often it is closed.
type counted struct {
	net.Conn
	open   *atomic.Int64
	closed atomic.Bool
}

// Close closes the connection and frees its place.
func (c *counted) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.open.Add(-1)
	}
	return c.Conn.Close()
}

// maxSocketPath is sizeof(sun_path) - 1 on Linux (unix(7)).
const maxSocketPath = 107

const probeTimeout = time.Second

// listenUnix opens a unix socket that only root can connect to. A socket that a dead
// process left is replaced; a live one, and a file that is no socket, are errors. The
// socket appears under its name with mode 0600 at once: it is made under another and
// renamed.
func listenUnix(path string) (net.Listener, error) {
	pending := path + "." + strconv.Itoa(os.Getpid())
	if len(pending) > maxSocketPath {
		return nil, errs.New(errs.Invalid, "unix socket %s: path has %d bytes: must have at most %d; use a shorter directory",
			path, len(path), maxSocketPath-len(pending)+len(path))
	}
	if err := checkStale(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "unix socket")
	}
	if err := os.Remove(pending); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errs.WrapAs(errs.Internal, err, "unix socket")
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: pending, Net: "unix"})
	if err != nil {
		return nil, errs.WrapAs(errs.Unavailable, err, "unix socket")
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(pending, 0o600)
	if err == nil {
		err = os.Rename(pending, path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(pending)
		return nil, errs.WrapAs(errs.Internal, err, "unix socket")
	}
	info, err := os.Lstat(path)
	if err != nil {
		_ = l.Close()
		return nil, errs.WrapAs(errs.Internal, err, "unix socket")
	}
	return &unixListener{UnixListener: l, path: path, info: info}, nil
}

// checkStale says whether the name is free, or held by a socket nobody listens on.
func checkStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "unix socket")
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errs.New(errs.Exists, "unix socket %s: there is a file of another kind; remove it or choose another path", path)
	}
	conn, err := net.DialTimeout("unix", path, probeTimeout)
	if err == nil {
		_ = conn.Close()
		return errs.New(errs.Exists, "unix socket %s: another process listens on it", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return errs.WrapAs(errs.Unavailable, err, "unix socket %s: cannot tell whether it is in use", path)
	}
	return nil
}

// unixListener removes its socket when it closes, unless another took the name since.
type unixListener struct {
	*net.UnixListener
	path   string
	info   fs.FileInfo
	closed atomic.Bool
}

// Close stops listening and removes the socket.
func (l *unixListener) Close() error {
	if !l.closed.CompareAndSwap(false, true) {
		return net.ErrClosed
	}
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.info) {
		_ = os.Remove(l.path)
	}
	return l.UnixListener.Close()
}
