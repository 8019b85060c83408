package pki_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
)

// redeemFile redeems the plain token of id against the records of dir.
func redeemFile(t *testing.T, dir string, id pki.Identity) (pki.TokenRecord, error) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, pki.TokensFile))
	if err != nil {
		t.Fatal(err)
	}
	records, err := pki.ParseTokens(data)
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(pki.TokenFile(dir, id))
	if err != nil {
		t.Fatal(err)
	}
	return pki.Redeem(records, string(token), time.Now())
}

func TestInitialTokens(t *testing.T) {
	t.Parallel()
	dir := initialised(t, pki.Plan{Services: []string{"ipam"}, Nodes: []string{"node-1"}})
	for id, uses := range map[pki.Identity]pki.Uses{pki.Service("ipam"): pki.Many, pki.Node("node-1"): pki.Once} {
		r, err := redeemFile(t, dir, id)
		if err != nil || r.Identity() != id || r.Uses != uses {
			t.Errorf("%s: %+v, %v", id, r, err)
		}
	}
	token, err := os.ReadFile(pki.TokenFile(dir, pki.Node("node-1")))
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.Split(strings.TrimSpace(string(token)), ".")[2]
	records, err := os.ReadFile(filepath.Join(dir, pki.TokensFile))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(records), secret) {
		t.Error("the records hold a secret")
	}
}

func TestTokenMisuse(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	good, record, err := pki.NewToken(pki.Node("node-1"), now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := pki.NewToken(pki.Node("node-1"), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	revoked := record
	revoked.Revoked = true
	parts := strings.Split(good, ".")
	swapped := strings.Join([]string{parts[0], parts[1], strings.Split(other, ".")[2]}, ".")

	for _, tt := range []struct {
		what    string
		records []pki.TokenRecord
		token   string
		at      time.Time
		kind    errs.Kind
		ok      bool
	}{
		{"good", []pki.TokenRecord{record}, good, now, 0, true},
		{"good, with a line end", []pki.TokenRecord{record}, good + "\n", now, 0, true},
		{"expired", []pki.TokenRecord{record}, good, now.Add(time.Hour), errs.Denied, false},
		{"revoked", []pki.TokenRecord{revoked}, good, now, errs.Denied, false},
		{"unknown", []pki.TokenRecord{record}, other, now, errs.Denied, false},
		{"nothing is known", nil, good, now, errs.Denied, false},
		{"wrong secret", []pki.TokenRecord{record}, swapped, now, errs.Denied, false},
		{"empty", []pki.TokenRecord{record}, "", now, errs.Invalid, false},
		{"another version", []pki.TokenRecord{record}, "pw2" + good[3:], now, errs.Invalid, false},
		{"cut", []pki.TokenRecord{record}, good[:len(good)-1], now, errs.Invalid, false},
		{"the hash in place of the secret", []pki.TokenRecord{record}, "pw1." + record.ID + "." + record.SecretSHA256, now, errs.Invalid, false},
	} {
		r, err := pki.Redeem(tt.records, tt.token, tt.at)
		if tt.ok {
			if err != nil || r.Identity() != pki.Node("node-1") {
				t.Errorf("%s: %+v, %v", tt.what, r, err)
			}
			continue
		}
		if !errs.Is(err, tt.kind) {
			t.Errorf("%s: %v, want %s", tt.what, err, tt.kind)
		}
		if !reflect.DeepEqual(r, pki.TokenRecord{}) {
			t.Errorf("%s: a record is given all the same", tt.what)
		}
		if err != nil && strings.Contains(err.Error(), parts[2]) {
			t.Errorf("%s: the error tells the secret", tt.what)
		}
	}
	if _, _, err := pki.NewToken(pki.User("admin"), time.Time{}); !errs.Is(err, errs.Invalid) {
		t.Errorf("a user's token: %v", err)
	}
	if _, _, err := pki.NewToken(pki.Node("etcd"), time.Time{}); !errs.Is(err, errs.Invalid) {
		t.Errorf("a token for a reserved name: %v", err)
	}
}

func TestTokenRecordsRoundTrip(t *testing.T) {
	t.Parallel()
	_, a, err := pki.NewToken(pki.Node("node-1"), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	_, b, err := pki.NewToken(pki.Service("ipam"), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	in := []pki.TokenRecord{a, b}
	data, err := pki.EncodeTokens(in)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pki.ParseTokens(data)
	if err != nil || !reflect.DeepEqual(in, out) {
		t.Errorf("%+v became %+v, %v", in, out, err)
	}
}

func TestParseTokensRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		``:                               "token records",
		`{"tokens": []} {}`:              "after the end",
		`{"tokens": [], "x": 1}`:         "unknown field",
		`{"tokens": [{"id": "zz"}]}`:     "tokens[0].id",
		`{"tokens": [{"uses": "ever"}]}`: "tokens[0].uses",
		`{"tokens": [{"kind": "node", "name": "etcd"}]}`:               "is the name of a service",
		`{"tokens": [{"id": "0123456789ab"}, {"id": "0123456789ab"}]}`: "tokens[1].id: \"0123456789ab\": must be unique",
	} {
		if _, err := pki.ParseTokens([]byte(text)); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func FuzzParseTokens(f *testing.F) {
	_, r, err := pki.NewToken(pki.Node("node-1"), time.Now())
	if err != nil {
		f.Fatal(err)
	}
	data, err := pki.EncodeTokens([]pki.TokenRecord{r})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		records, err := pki.ParseTokens(data)
		if err != nil {
			return
		}
		again, err := pki.EncodeTokens(records)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pki.ParseTokens(again); err != nil {
			t.Errorf("%q is accepted, %q is not: %v", data, again, err)
		}
	})
}
