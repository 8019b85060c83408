// Package enrolment hands out certificates. In: join tokens, certificate requests. Out: leaves that the CA signed, new
// tokens, revocations, and the record of what was used, in the store.
//
// Invariants: the identity in a leaf is the token's, whatever the request says; a node's token buys one certificate, for
// one key, and the same request again within RepeatWithin gets an answer again, since the first may have been lost; what
// was used is in the store before anything is signed; a revocation outranks every other record of the token. Secrets are
// neither stored nor logged. The package must not decide who may make tokens: the access table does.
package enrolment

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/store"
)

// Lifetimes of tokens.
const (
	DefaultLifetime = 24 * time.Hour
	MaxLifetime     = 365 * 24 * time.Hour
)

// RepeatWithin is how long after its first use a node's token answers the same key again.
const RepeatWithin = 10 * time.Minute

// maxAddresses bounds the further addresses of a leaf.
const maxAddresses = 16

// Paths of the store's blobs: the records of tokens that were made or revoked here, and the uses of tokens.
const (
	tokenDir = "join-tokens"
	useDir   = "join-token-uses"
)

// Signer signs leaves; *pki.Authority is one.
type Signer interface {
	Sign(csrPEM []byte, id pki.Identity, dnsNames []string, ips []netip.Addr, lifetime time.Duration) ([]byte, error)
	CAPEM() []byte
}

// Desk enrols. It is safe for concurrent use.
type Desk struct {
	Store  *store.Store
	Signer Signer
	// Initial are the tokens that were made with the CA; it is asked each time, since more may be made there.
	Initial func() ([]pki.TokenRecord, error)
	Now     func() time.Time
	Log     *slog.Logger
}

// Certificate is an answer to a request, both PEM.
type Certificate struct{ Leaf, CA []byte }

// Enrol signs the request for the identity of the token. addresses are IP addresses that the leaf shall carry besides the
// standard ones. Errors: Invalid for the request or the addresses; Denied for a token that is unknown, wrong, revoked,
// expired, or a node's that was used by another key or too long ago.
func (d *Desk) Enrol(ctx context.Context, token string, csrPEM []byte, addresses []string) (Certificate, error) {
	more, err := parseAddresses(addresses)
	if err != nil {
		return Certificate{}, err
	}
	key, err := pki.RequestKeyID(csrPEM)
	if err != nil {
		return Certificate{}, err
	}
	rec, err := d.redeem(ctx, token)
	if err != nil {
		return Certificate{}, err
	}
	if rec.Uses == pki.Once {
		if err := d.use(ctx, rec, key); err != nil {
			return Certificate{}, err
		}
	}
	id := rec.Identity()
	dns, ips := pki.ServerNames(id)
	leaf, err := d.Signer.Sign(csrPEM, id, dns, append(ips, more...), pki.LeafLifetime)
	if err != nil {
		return Certificate{}, err
	}
	d.Log.InfoContext(ctx, "enrolled", "identity", id.String(), "token", rec.ID, "key", key)
	return Certificate{Leaf: leaf, CA: d.Signer.CAPEM()}, nil
}

func parseAddresses(texts []string) ([]netip.Addr, error) {
	var bad []errs.Violation
	if len(texts) > maxAddresses {
		bad = append(bad, errs.Violation{Field: "ip_addresses", Rule: fmt.Sprintf("must be no more than %d", maxAddresses)})
	}
	var out []netip.Addr
	for i, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" || !a.IsGlobalUnicast() {
			bad = append(bad, errs.Violation{Field: fmt.Sprintf("ip_addresses[%d]", i), Value: text, Rule: "must be an IP address of the machine, without a zone"})
			continue
		}
		out = append(out, a.Unmap())
	}
	return out, errs.InvalidFields("certificate request", bad)
}

// redeem finds the token's record, the store's before the initial one.
func (d *Desk) redeem(ctx context.Context, token string) (pki.TokenRecord, error) {
	id, err := pki.TokenID(token)
	if err != nil {
		return pki.TokenRecord{}, err
	}
	rec, _, known, err := d.record(ctx, id)
	if err != nil {
		return pki.TokenRecord{}, err
	}
	var records []pki.TokenRecord
	if known {
		records = append(records, rec)
	}
	return pki.Redeem(records, token, d.Now())
}

// record reads a token's record; rev is 0 where the store has none of its own.
func (d *Desk) record(ctx context.Context, id string) (rec pki.TokenRecord, rev store.Revision, known bool, err error) {
	var text wrapperspb.BytesValue
	rev, err = d.Store.GetBlob(ctx, tokenDir+"/"+id, &text)
	switch {
	case err == nil:
		list, err := pki.ParseTokens(text.GetValue())
		if err != nil {
			return rec, 0, false, errs.WrapAs(errs.Internal, err, "enrolment: record of token %s", id)
		}
		if len(list) != 1 || list[0].ID != id {
			return rec, 0, false, errs.New(errs.Internal, "enrolment: the record of token %s is another token's", id)
		}
		return list[0], rev, true, nil
	case !errs.Is(err, errs.NotFound):
		return rec, 0, false, err
	}
	initial, err := d.Initial()
	if err != nil {
		return rec, 0, false, errs.Wrap(err, "enrolment: initial tokens")
	}
	for _, r := range initial {
		if r.ID == id {
			return r, 0, true, nil
		}
	}
	return rec, 0, false, nil
}

func (d *Desk) putRecord(ctx context.Context, rec pki.TokenRecord, rev store.Revision) error {
	text, err := pki.EncodeTokens([]pki.TokenRecord{rec})
	if err != nil {
		return err
	}
	_, err = d.Store.PutBlob(ctx, tokenDir+"/"+rec.ID, wrapperspb.Bytes(text), rev)
	return errs.Wrap(err, "enrolment: token %s", rec.ID)
}

// use takes a token that works once, for a key.
func (d *Desk) use(ctx context.Context, rec pki.TokenRecord, key string) error {
	path, now := useDir+"/"+rec.ID, d.Now()
	mark, err := structpb.NewStruct(map[string]any{"key": key, "at": now.UTC().Format(time.RFC3339)})
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "enrolment: token %s", rec.ID)
	}
	_, err = d.Store.PutBlob(ctx, path, mark, 0)
	if !errs.Is(err, errs.Conflict) {
		return errs.Wrap(err, "enrolment: use of token %s", rec.ID)
	}
	var held structpb.Struct
	if _, err := d.Store.GetBlob(ctx, path, &held); err != nil {
		return errs.Wrap(err, "enrolment: use of token %s", rec.ID)
	}
	at, err := time.Parse(time.RFC3339, held.GetFields()["at"].GetStringValue())
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "enrolment: use of token %s", rec.ID)
	}
	if held.GetFields()["key"].GetStringValue() == key && now.Sub(at) < RepeatWithin {
		return nil
	}
	return errs.New(errs.Denied, "join token %s for %s: was used already, at %s: a node's token works once; make a new one",
		rec.ID, rec.Identity(), at.Format(time.RFC3339))
}

// Create makes a token for an identity; 0 is DefaultLifetime. Errors: Invalid.
func (d *Desk) Create(ctx context.Context, id pki.Identity, lifetime time.Duration) (token, tokenID string, err error) {
	switch {
	case lifetime == 0:
		lifetime = DefaultLifetime
	case lifetime < 0 || lifetime > MaxLifetime:
		return "", "", errs.InvalidFields("join token", []errs.Violation{{
			Field: "lifetime_seconds", Value: fmt.Sprint(int64(lifetime / time.Second)),
			Rule: fmt.Sprintf("must be between 0 and %d, inclusive", int64(MaxLifetime/time.Second)),
		}})
	}
	token, rec, err := pki.NewToken(id, d.Now().Add(lifetime))
	if err != nil {
		return "", "", err
	}
	if err := d.putRecord(ctx, rec, 0); err != nil {
		return "", "", err
	}
	d.Log.InfoContext(ctx, "join token made", "identity", id.String(), "token", rec.ID, "expires", rec.Expires)
	return token, rec.ID, nil
}

// Revoke makes a token useless. Errors: NotFound.
func (d *Desk) Revoke(ctx context.Context, id string) error {
	for {
		rec, rev, known, err := d.record(ctx, id)
		if err != nil {
			return err
		}
		if !known {
			return errs.New(errs.NotFound, "join token %s not found", id)
		}
		if rec.Revoked {
			return nil
		}
		rec.Revoked = true
		err = d.putRecord(ctx, rec, rev)
		if !errs.Is(err, errs.Conflict) {
			if err == nil {
				d.Log.InfoContext(ctx, "join token revoked", "identity", rec.Identity().String(), "token", id)
			}
			return err
		}
	}
}
