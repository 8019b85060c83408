package rpc

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
)

const (
	enrolTimeout    = 10 * time.Second
	enrolBackoff    = 250 * time.Millisecond
	enrolBackoffMax = 10 * time.Second
	maxTokenBytes   = 4 << 10
)

// Enrol gets this process its first certificate, if the identity directory has none: a
// key made here, a request that cluster signs for the bearer of the join token. Cluster
// is asked again, with growing pauses, until it can be reached; a refusal is final. The
// CA is pinned by join.caFile, before the token leaves this process. It is a
// daemon.Program's Enrol.
func Enrol(ctx context.Context, log *slog.Logger, cfg daemon.Common) error {
	if cfg.Join == nil {
		return nil
	}
	have, err := pki.HasIdentity(cfg.Identity)
	if err != nil || have {
		return err
	}
	e, err := newEnrolment(cfg)
	if err != nil {
		return errs.Wrap(err, "join %s", cfg.Join.Target)
	}
	pause := enrolBackoff
	for {
		err := e.try(ctx)
		if err == nil {
			log.InfoContext(ctx, "joined", "target", cfg.Join.Target, "identity", cfg.Identity)
			return nil
		}
		if !errs.Is(err, errs.Unavailable) {
			return errs.Wrap(err, "join %s", cfg.Join.Target)
		}
		log.WarnContext(ctx, "cannot join yet; trying again", "target", cfg.Join.Target, "error", err)
		select {
		case <-ctx.Done():
			return errs.WrapAs(errs.Unavailable, context.Cause(ctx), "join %s", cfg.Join.Target)
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
		pause = min(2*pause, enrolBackoffMax)
	}
}

type enrolment struct {
	join  daemon.Join
	dir   string
	token string
	caPEM []byte
	key   []byte
	csr   []byte
}

func newEnrolment(cfg daemon.Common) (*enrolment, error) {
	e := &enrolment{join: *cfg.Join, dir: cfg.Identity}
	var err error
	if e.caPEM, err = os.ReadFile(e.join.CAFile); err != nil {
		return nil, errs.WrapAs(errs.NotFound, err, "CA certificate")
	}
	if e.token, err = readToken(e.join); err != nil {
		return nil, err
	}
	if e.key, err = pki.PendingKey(e.dir); err != nil {
		return nil, err
	}
	e.csr, err = pki.RequestFor(e.key)
	return e, err
}

func readToken(join daemon.Join) (string, error) {
	token := join.Token
	if join.TokenFile != "" {
		f, err := os.Open(join.TokenFile)
		if err != nil {
			return "", errs.WrapAs(errs.NotFound, err, "join token")
		}
		defer f.Close()
		text := make([]byte, maxTokenBytes)
		n, err := f.Read(text)
		if err != nil {
			return "", errs.WrapAs(errs.Invalid, err, "join token %s", join.TokenFile)
		}
		token = string(text[:n])
	}
	token = strings.TrimSpace(token)
	_, err := pki.TokenID(token)
	return token, err
}

// try asks once.
func (e *enrolment) try(ctx context.Context) error {
	pool, err := pki.CAPool(e.caPEM)
	if err != nil {
		return errs.Wrap(err, "%s", e.join.CAFile)
	}
	conn, err := Dial(e.join.Target, pki.Service("cluster"), nil, WithoutCertificate(pool))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	resp, err := clusterv1.NewEnrolmentServiceClient(conn).Enroll(ctx, &clusterv1.EnrollRequest{Token: e.token, CsrPem: string(e.csr)})
	if err != nil {
		return err
	}
	// The CA that was pinned is the one that is trusted from now on, whatever the answer
	// carries: it came from that CA's own server.
	if err := pki.VerifyLeaf(e.caPEM, []byte(resp.GetCertificatePem()), e.key); err != nil {
		return errs.Wrap(err, "cluster's answer")
	}
	if err := pki.WriteIdentity(e.dir, e.caPEM, []byte(resp.GetCertificatePem()), e.key); err != nil {
		return err
	}
	return pki.DropPendingKey(e.dir)
}
