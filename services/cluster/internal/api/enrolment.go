package api

import (
	"context"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	"podwire.dev/services/cluster/internal/enrolment"
)

// Enrolment serves podwire.cluster.v1.EnrolmentService.
type Enrolment struct {
	clusterv1.UnimplementedEnrolmentServiceServer
	desk *enrolment.Desk
}

// NewEnrolment enrols at a desk.
func NewEnrolment(desk *enrolment.Desk) *Enrolment { return &Enrolment{desk: desk} }

// Enroll implements EnrolmentService. The caller shows no certificate; the token is all that it has.
func (e *Enrolment) Enroll(ctx context.Context, req *clusterv1.EnrollRequest) (*clusterv1.EnrollResponse, error) {
	cert, err := e.desk.Enrol(ctx, req.GetToken(), []byte(req.GetCsrPem()), req.GetIpAddresses())
	if err != nil {
		return nil, err
	}
	return &clusterv1.EnrollResponse{CertificatePem: string(cert.Leaf), CaPem: string(cert.CA)}, nil
}

// CreateToken implements EnrolmentService.
func (e *Enrolment) CreateToken(ctx context.Context, req *clusterv1.CreateTokenRequest) (*clusterv1.CreateTokenResponse, error) {
	seconds := req.GetLifetimeSeconds()
	// Beyond this a Duration could not hold it; the desk names the bound.
	if most := int64(enrolment.MaxLifetime/time.Second) + 1; seconds > most {
		seconds = most
	}
	id := pki.Identity{Kind: pki.Kind(req.GetIdentityKind()), Name: req.GetIdentityName()}
	token, tokenID, err := e.desk.Create(ctx, id, time.Duration(max(seconds, -1))*time.Second)
	if err != nil {
		return nil, err
	}
	return &clusterv1.CreateTokenResponse{Token: token, TokenId: tokenID}, nil
}

// RevokeToken implements EnrolmentService.
func (e *Enrolment) RevokeToken(ctx context.Context, req *clusterv1.RevokeTokenRequest) (*clusterv1.RevokeTokenResponse, error) {
	if req.GetTokenId() == "" {
		return nil, errs.InvalidFields("join token", []errs.Violation{{Field: "token_id", Rule: "is required"}})
	}
	return &clusterv1.RevokeTokenResponse{}, e.desk.Revoke(ctx, req.GetTokenId())
}
