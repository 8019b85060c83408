// Package etcdkv is the kv.Engine on an etcd cluster.
//
// In: endpoints and TLS. Out: etcd's answers with its errors as kv's sentinels. Watches are made on etcd's watch API
// itself and not on clientv3's watcher, for two reasons: clientv3 resumes a watch after a broken connection without
// showing it, so that a restored store would go unnoticed, and it reads into a queue without bound. Here a broken
// connection ends the watch, and what the consumer does not read stays in etcd.
package etcdkv

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podwire.dev/internal/store/kv"
)

// Config says how to reach etcd.
type Config struct {
	// Endpoints are client URLs.
	Endpoints []string
	// TLS is the client's side; nil is plain text.
	TLS *tls.Config
	// DialTimeout bounds connecting; 0 is 5 s.
	DialTimeout time.Duration
}

const (
	// defaultDial is Config.DialTimeout where it is 0.
	defaultDial = 5 * time.Second
	// keepAlive is how long a silent connection goes unprobed, and a probe unanswered, before it counts as broken.
	keepAlive = 5 * time.Second
	// maxMessage bounds an answer of etcd, in bytes: a page of objects is at most 500 values of at most 1.5 MiB, and
	// one revision's events at most 128 with their previous values.
	maxMessage = 1 << 30
)

// Engine is an etcd cluster. It is safe for concurrent use.
type Engine struct {
	client *clientv3.Client
}

// Dial makes an Engine. It returns before the connection is made.
func Dial(cfg Config) (*Engine, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("no etcd endpoint configured")
	}
	timeout := cfg.DialTimeout
	if timeout == 0 {
		timeout = defaultDial
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: cfg.Endpoints, TLS: cfg.TLS, DialTimeout: timeout,
		DialKeepAliveTime: keepAlive, DialKeepAliveTimeout: keepAlive,
		MaxCallRecvMsgSize: maxMessage,
		Logger:             zap.NewNop(), // what matters comes back as an error
	})
	if err != nil {
		return nil, err
	}
	return &Engine{client: client}, nil
}

// Close ends the connections, and with them every watch and every renewal of a lease.
func (e *Engine) Close() error { return e.client.Close() }

// Range implements kv.Engine.
func (e *Engine) Range(ctx context.Context, req kv.RangeRequest) (kv.RangeResponse, error) {
	opts := []clientv3.OpOption{clientv3.WithLimit(req.Limit), clientv3.WithRev(req.Revision)}
	if req.End != "" {
		opts = append(opts, clientv3.WithRange(req.End))
	}
	resp, err := e.client.Get(ctx, req.Key, opts...)
	if err != nil {
		return kv.RangeResponse{}, translate(err)
	}
	out := kv.RangeResponse{Header: header(resp.Header), More: resp.More, KVs: make([]kv.KeyValue, len(resp.Kvs))}
	for i, pair := range resp.Kvs {
		out.KVs[i] = *keyValue(pair)
	}
	return out, nil
}

// Txn implements kv.Engine.
func (e *Engine) Txn(ctx context.Context, req kv.TxnRequest) (kv.TxnResponse, error) {
	var compares []clientv3.Cmp
	var then, otherwise []clientv3.Op
	for _, c := range req.Compares {
		switch c.Target {
		case kv.CompareMod:
			compares = append(compares, clientv3.Compare(clientv3.ModRevision(c.Key), "=", c.Revision))
		case kv.CompareCreate:
			compares = append(compares, clientv3.Compare(clientv3.CreateRevision(c.Key), "=", c.Revision))
		case kv.ComparePresent:
			compares = append(compares, clientv3.Compare(clientv3.CreateRevision(c.Key), ">", 0))
		}
		otherwise = append(otherwise, clientv3.OpGet(c.Key))
	}
	for _, op := range req.Ops {
		if op.Action == kv.Delete {
			then = append(then, clientv3.OpDelete(op.Key))
			continue
		}
		then = append(then, clientv3.OpPut(op.Key, string(op.Value), clientv3.WithLease(clientv3.LeaseID(op.Lease))))
	}
	resp, err := e.client.Txn(ctx).If(compares...).Then(then...).Else(otherwise...).Commit()
	if err != nil {
		return kv.TxnResponse{}, translate(err)
	}
	out := kv.TxnResponse{Header: header(resp.Header), Succeeded: resp.Succeeded}
	if resp.Succeeded {
		return out, nil
	}
	for _, r := range resp.Responses {
		var have *kv.KeyValue
		if pairs := r.GetResponseRange().GetKvs(); len(pairs) > 0 {
			have = keyValue(pairs[0])
		}
		out.Current = append(out.Current, have)
	}
	return out, nil
}

// Grant implements kv.Engine.
func (e *Engine) Grant(ctx context.Context, ttl time.Duration) (int64, error) {
	resp, err := e.client.Grant(ctx, int64(ttl/time.Second))
	if err != nil {
		return 0, translate(err)
	}
	return int64(resp.ID), nil
}

// KeepAlive implements kv.Engine. The renewal and the goroutine that drains its answers end with ctx or the lease.
func (e *Engine) KeepAlive(ctx context.Context, lease int64) (<-chan struct{}, error) {
	answers, err := e.client.KeepAlive(ctx, clientv3.LeaseID(lease))
	if err != nil {
		return nil, translate(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range answers {
		}
	}()
	return ended, nil
}

// Revoke implements kv.Engine.
func (e *Engine) Revoke(ctx context.Context, lease int64) error {
	_, err := e.client.Revoke(ctx, clientv3.LeaseID(lease))
	if err = translate(err); errors.Is(err, kv.ErrLeaseNotFound) {
		return nil
	}
	return err
}

// Members implements kv.Engine.
func (e *Engine) Members(ctx context.Context) ([]kv.MemberStatus, error) {
	var out []kv.MemberStatus
	for _, endpoint := range e.client.Endpoints() {
		resp, err := e.client.Status(ctx, endpoint)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", endpoint, translate(err))
		}
		out = append(out, kv.MemberStatus{
			Header: header(resp.Header), Endpoint: endpoint, Version: resp.Version,
			DBSize: resp.DbSize, DBSizeInUse: resp.DbSizeInUse, Quota: resp.DbSizeQuota,
			Leader: resp.Leader == resp.Header.GetMemberId(), Alarms: resp.Errors,
		})
	}
	return out, nil
}

// Defragment implements kv.Engine.
func (e *Engine) Defragment(ctx context.Context, endpoint string) error {
	_, err := e.client.Defragment(ctx, endpoint)
	return translate(err)
}

// watchStream opens etcd's watch API, with the bound on messages that clientv3 gives its own calls.
func (e *Engine) watchStream(ctx context.Context) (pb.Watch_WatchClient, error) {
	return pb.NewWatchClient(e.client.ActiveConnection()).Watch(ctx, grpc.MaxCallRecvMsgSize(maxMessage))
}

func header(h *pb.ResponseHeader) kv.Header {
	return kv.Header{Cluster: h.GetClusterId(), Revision: h.GetRevision(), Term: h.GetRaftTerm()}
}

func keyValue(pair *mvccpb.KeyValue) *kv.KeyValue {
	return &kv.KeyValue{
		Key: string(pair.Key), Value: pair.Value,
		CreateRevision: pair.CreateRevision, ModRevision: pair.ModRevision, Lease: pair.Lease,
	}
}

// translate maps etcd's errors to kv's sentinels and keeps their text. What is not known is kv.ErrUnavailable if gRPC
// says that trying again may help.
func translate(err error) error {
	if err == nil {
		return nil
	}
	sentinel := map[error]error{
		rpctypes.ErrCompacted: kv.ErrCompacted, rpctypes.ErrFutureRev: kv.ErrFutureRevision,
		rpctypes.ErrLeaseNotFound: kv.ErrLeaseNotFound, rpctypes.ErrNoSpace: kv.ErrNoSpace,
		rpctypes.ErrTooManyOps: kv.ErrTooLarge, rpctypes.ErrRequestTooLarge: kv.ErrTooLarge,
		rpctypes.ErrPermissionDenied: kv.ErrDenied, rpctypes.ErrTooManyRequests: kv.ErrUnavailable,
	}
	for known, ours := range sentinel {
		if errors.Is(err, known) {
			return fmt.Errorf("%w (%w)", ours, err)
		}
	}
	// Renewal of leases ended as a whole, which a new connection mends.
	var halted clientv3.ErrKeepAliveHalted
	if errors.As(err, &halted) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
	}
	switch code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal, codes.Aborted, codes.Unknown:
		return fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
	case codes.PermissionDenied, codes.Unauthenticated:
		return fmt.Errorf("%w: %w", kv.ErrDenied, err)
	case codes.ResourceExhausted:
		return fmt.Errorf("%w: %w", kv.ErrTooLarge, err)
	default:
		return err
	}
}

// code is the gRPC code of an error, which clientv3 hides in a type of its own.
func code(err error) codes.Code {
	var etcd rpctypes.EtcdError
	if errors.As(err, &etcd) {
		return etcd.Code()
	}
	return status.Code(err)
}
