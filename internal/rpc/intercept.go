package rpc

import (
	"context"
	"errors"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
)

const (
	// DefaultDeadline bounds a unary call whose caller set no deadline.
	DefaultDeadline = 30 * time.Second
	// deadlineShave is what each hop takes off its caller's deadline, so that the deeper
	// hop times out first and the error that arrives names it.
	deadlineShave = 20 * time.Millisecond
)

// unary is the whole path of a unary call: identity, access, deadline, handler, status.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	ctx, err = s.admit(ctx, info.FullMethod)
	if err == nil {
		var cancel context.CancelFunc
		ctx, cancel, err = shave(ctx)
		defer cancel()
	}
	if err == nil {
		err = s.guard(info.FullMethod, func() (err error) {
			resp, err = handler(ctx, req)
			return err
		})
	}
	if err != nil {
		return nil, s.leave(ctx, info.FullMethod, err)
	}
	return resp, nil
}

// stream is the path of a streaming call. It has no deadline of its own, but its context
// ends when the server begins to stop: a graceful stop waits for streams, and theirs is
// to last.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, err := s.admit(ss.Context(), info.FullMethod)
	if err != nil {
		return s.leave(ctx, info.FullMethod, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.draining, func() { cancel(errDraining) })()
	err = s.guard(info.FullMethod, func() error { return handler(srv, serverStream{ss, ctx}) })
	if err != nil && errors.Is(context.Cause(ctx), errDraining) {
		err = errDraining
	}
	return s.leave(ctx, info.FullMethod, err)
}

// errDraining is what a stream ends with when its server stops.
var errDraining = errs.New(errs.Unavailable, "the server stops: connect again")

// serverStream is a stream with the context that the interceptor made.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context // grpc.ServerStream is defined that way
}

// Context is the handler's context.
func (s serverStream) Context() context.Context { return s.ctx }

// admit finds out who calls and asks the access table. The context it returns carries
// the identity also when the call is refused.
func (s *Server) admit(ctx context.Context, method string) (context.Context, error) {
	id, err := callerOf(ctx)
	ctx = WithIdentity(ctx, id)
	if err != nil {
		return ctx, err
	}
	return ctx, s.opts.Access.Check(id, method)
}

// callerOf reads the identity from what the handshake established.
func callerOf(ctx context.Context) (Identity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return pki.Anonymous, errs.New(errs.Internal, "rpc: call without a peer")
	}
	switch auth := p.AuthInfo.(type) {
	case credentials.TLSInfo:
		return peerIdentity(auth.State)
	case unixAuth:
		return pki.User("root"), nil // the handshake admits no other
	}
	return pki.Anonymous, errs.New(errs.Denied, "rpc: connection without credentials")
}

// shave gives the handler a deadline a little before the caller's.
func shave(ctx context.Context) (context.Context, context.CancelFunc, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		ctx, cancel := context.WithTimeout(ctx, DefaultDeadline)
		return ctx, cancel, nil
	}
	deadline = deadline.Add(-deadlineShave)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	if ctx.Err() != nil {
		return ctx, cancel, errs.WrapAs(errs.Unavailable, ctx.Err(), "the deadline leaves less than %s, too little to begin", deadlineShave)
	}
	return ctx, cancel, nil
}

// guard turns a panic of a handler into an error for the caller and the end of the
// process: state that a panic left behind is not to be served from.
func (s *Server) guard(method string, handle func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.opts.Fail(errs.New(errs.Internal, "rpc: handler of %s panicked: %v\n%s", method, p, debug.Stack()))
			err = errs.New(errs.Internal, "%s: the handler failed; its server stops, and its log says why", method)
		}
	}()
	return handle()
}

// leave is toStatus at the edge of the process, where what is our own fault is logged.
func (s *Server) leave(ctx context.Context, method string, err error) error {
	if err != nil && errs.Is(err, errs.Internal) && ctx.Err() == nil {
		s.opts.Log.ErrorContext(ctx, "call failed", "method", method, "caller", FromContext(ctx).String(), "error", err)
	}
	return toStatus(ctx, err)
}
