package server

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// acceptPause follows an accept that failed for want of descriptors.
const acceptPause = 50 * time.Millisecond

// accept takes connections in until ctx ends.
func (s *Server) accept(ctx context.Context) error {
	var streams sync.WaitGroup
	defer streams.Wait()
	defer s.hangUp() // those that came while the others were told
	for {
		conn, err := s.tcp.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED):
			s.log.Warn("a connection could not be taken", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		case err != nil:
			return err
		}
		client := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if !s.admit(conn, client) {
			_ = conn.Close()
			continue
		}
		streams.Go(func() {
			defer s.dismiss(conn, client)
			s.converse(ctx, conn, client)
		})
	}
}

func (s *Server) admit(conn *net.TCPConn, client netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= s.limits.Connections || s.clients[client] >= s.limits.ConnectionsPerClient {
		return false
	}
	s.conns[conn] = struct{}{}
	s.clients[client]++
	return true
}

func (s *Server) dismiss(conn *net.TCPConn, client netip.Addr) {
	_ = conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
	if s.clients[client]--; s.clients[client] == 0 {
		delete(s.clients, client)
	}
}

// hangUp lets connections finish what they asked and read nothing more.
func (s *Server) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// stream is one connection's writing side.
type stream struct {
	conn     *net.TCPConn
	transfer time.Duration

	mu  sync.Mutex
	buf []byte
}

// send writes one message with its length (RFC 1035 section 4.2.2) in one segment. A connection that does not take it in
// time is closed.
func (t *stream) send(message []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(binary.BigEndian.AppendUint16(t.buf[:0], uint16(len(message))), message...)
	_ = t.conn.SetWriteDeadline(time.Now().Add(t.transfer))
	if _, err := t.conn.Write(t.buf); err != nil {
		_ = t.conn.Close()
	}
}

// converse answers the questions of a connection. Those for others may be overtaken (RFC 7766 section 6.2.1.1).
func (s *Server) converse(ctx context.Context, conn *net.TCPConn, client netip.Addr) {
	var errands sync.WaitGroup
	defer errands.Wait()
	h := newHandler(s.resolver, true)
	t := &stream{conn: conn, transfer: s.limits.Transfer}
	pipeline := make(chan struct{}, s.limits.Pipelined)
	buf := make([]byte, maxQuery)
	for {
		p, ok := s.next(ctx, conn, buf)
		if !ok {
			return
		}
		reply, e := h.handle(p)
		switch {
		case reply != nil:
			t.send(reply)
		case e == nil:
			return // who sends answers or rubbish over a connection is not served on it any more
		default:
			pipeline <- struct{}{} // full: the client waits, as we do not read on
			errands.Go(func() {
				defer func() { <-pipeline }()
				s.errand(ctx, t, client, e)
			})
		}
	}
}

func (s *Server) errand(ctx context.Context, t *stream, client netip.Addr, e *errand) {
	answer := func() ([]byte, error) { return busy(e, true) }
	if s.room(client) {
		defer s.leave(client)
		answer = func() ([]byte, error) { return run(ctx, s.resolver, e, true) }
	}
	reply, err := answer()
	if err != nil {
		s.log.Debug("an answer could not be made", "client", client, "error", err)
		return
	}
	t.send(reply)
}

// next reads one message; false at the end, at an error, and where it is too large or too slow.
func (s *Server) next(ctx context.Context, conn *net.TCPConn, buf []byte) ([]byte, bool) {
	_ = conn.SetReadDeadline(time.Now().Add(s.limits.Idle))
	if ctx.Err() != nil { // hangUp may have come just before
		return nil, false
	}
	if _, err := io.ReadFull(conn, buf[:2]); err != nil {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(buf))
	if n > len(buf) {
		return nil, false
	}
	_ = conn.SetReadDeadline(time.Now().Add(s.limits.Transfer))
	if _, err := io.ReadFull(conn, buf[:n]); err != nil {
		return nil, false
	}
	return buf[:n], true
}
